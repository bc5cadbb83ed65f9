;; mark: a NETWORK plugin that puts its mark before the first bytes a client sends.
;;
;; Configuration: {"mark":"..."}, without spaces and escapes.
(module
  (import "env" "proxy_get_buffer_bytes" (func $get_buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_buffer_bytes" (func $set_buffer (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  ;; 0: pointer of the configuration, 4: its size, 8: the stream that is marked already · 65536: what the host copies to us
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param $context i32) (param $size i32) (result i32)
    (if (i32.lt_u (local.get $size) (i32.const 12)) (then (return (i32.const 0))))
    (drop (call $get_buffer (i32.const 7) (i32.const 0) (local.get $size) (i32.const 0) (i32.const 4)))
    (memory.copy (i32.const 1024) (i32.load (i32.const 0)) (i32.load (i32.const 4)))
    (i32.const 1))
  (func (export "proxy_on_new_connection") (param i32) (result i32) (i32.const 0))
  (func (export "proxy_on_downstream_data") (param $context i32) (param $size i32) (param $end i32) (result i32)
    (if (i32.and (i32.gt_u (local.get $size) (i32.const 0)) (i32.ne (local.get $context) (i32.load (i32.const 8))))
      (then
        (i32.store (i32.const 8) (local.get $context))
        ;; the mark lies between {"mark":" and "}
        (drop (call $set_buffer (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 1033)
          (i32.sub (i32.load (i32.const 4)) (i32.const 11))))))
    (i32.const 0))
  (func (export "proxy_on_upstream_data") (param i32 i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_downstream_connection_close") (param i32 i32))
)
