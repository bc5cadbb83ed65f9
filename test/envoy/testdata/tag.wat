;; An HTTP filter that says on the request which module, which environment and which configuration served it.
;; The tests make other versions of it by replacing "version0" in the assembled bytes.
(module
  (import "env" "proxy_add_header_map_value" (func $add_header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes" (func $get_buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "x-tagx-envx-configversion0")
  ;;                   0    5    10      18
  ;; 64: pointer of the configuration, 68: its size, 72: number of variables, 76: bytes of them
  ;; 1024: pointers to the variables, 4096: the variables, 65536: what the host copies to us
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))

  ;; A configuration that begins with "R" is refused; one that begins with "T" traps.
  (func (export "proxy_on_configure") (param $context i32) (param $size i32) (result i32)
    (if (i32.eqz (local.get $size)) (then (return (i32.const 1))))
    (drop (call $get_buffer (i32.const 7) (i32.const 0) (local.get $size) (i32.const 64) (i32.const 68)))
    (memory.copy (i32.const 8192) (i32.load (i32.const 64)) (i32.load (i32.const 68)))
    (i32.store (i32.const 80) (i32.load (i32.const 68)))
    (if (i32.eq (i32.load8_u (i32.const 8192)) (i32.const 84)) (then unreachable))
    (i32.ne (i32.load8_u (i32.const 8192)) (i32.const 82)))

  (func (export "proxy_on_request_headers") (param $context i32) (param $count i32) (param $end i32) (result i32)
    (drop (call $add_header (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 18) (i32.const 8)))
    (drop (call $environ_sizes (i32.const 72) (i32.const 76)))
    (if (i32.load (i32.const 76))
      (then
        (drop (call $environ (i32.const 1024) (i32.const 4096)))
        ;; without the last NUL: the tests give one variable
        (drop (call $add_header (i32.const 0) (i32.const 5) (i32.const 5)
          (i32.const 4096) (i32.sub (i32.load (i32.const 76)) (i32.const 1))))))
    (if (i32.load (i32.const 80))
      (then
        (drop (call $add_header (i32.const 0) (i32.const 10) (i32.const 8) (i32.const 8192) (i32.load (i32.const 80))))))
    (i32.const 0)))
