;; stranger: calls a host function that no proxy has, at configuration and at each
;; request, and expects the status Unimplemented (12).
(module
  (import "env" "proxy_make_coffee" (func $coffee (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (i32.eq (call $coffee (i32.const 1)) (i32.const 12)))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $coffee (i32.const 2))) (i32.const 0))
)
