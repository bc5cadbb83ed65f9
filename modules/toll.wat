;; toll: an HTTP plugin that lets through only requests that carry a header.
;;
;; Configuration: none, or {"header": "<1 to 64 bytes, lower case, no backslash>"};
;;           the default is x-stile-pass. Anything else is refused.
;; Request:  without that header it is answered 403; with it, x-stile-toll is set to
;;           "paid" (whatever the client wrote there) and x-stile-trail gets ",toll".
;;
;; The header's name is kept once per VM: a proxy must give each plugin a VM of its
;; own (a vm_id of its own), as stile does.
(module
  (import "env" "proxy_log"
    (func $log (param i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes"
    (func $get_buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_value"
    (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value"
    (func $replace_header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response"
    (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))

  (memory (export "memory") 1 16)

  ;; 0..511 constants · 512..575 the header's name · 1024 two result cells
  ;; 2048..4095 text under construction · 4096.. heap, emptied at each callback
  (data (i32.const 0) "\"header\"")
  (data (i32.const 16) "x-stile-trail")
  (data (i32.const 32) "x-stile-toll")
  (data (i32.const 48) "paid")
  (data (i32.const 56) "toll")
  (data (i32.const 64) "toll: the configuration must be empty or {\"header\": \"...\"}, 1 to 64 bytes without backslash")
  (data (i32.const 192) "toll_unpaid")
  (data (i32.const 208) "toll: this way needs the header ")
  (data (i32.const 512) "x-stile-pass")

  (global $heap (mut i32) (i32.const 4096))
  (global $header_len (mut i32) (i32.const 12))
  (global $value (mut i32) (i32.const 0))      ;; what $string_field found
  (global $value_len (mut i32) (i32.const 0))

  (func (export "proxy_abi_version_0_2_1"))

  ;; A bump allocator: what the host hands over is read before the callback ends.
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $heap))
    (global.set $heap
      (i32.and (i32.add (i32.add (local.get $at) (local.get $size)) (i32.const 7)) (i32.const -8)))
    (if (i32.lt_u (global.get $heap) (local.get $at)) (then (unreachable)))
    (block $fits
      (loop $more
        (br_if $fits (i32.le_u (global.get $heap) (i32.shl (memory.size) (i32.const 16))))
        (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))
        (unreachable)))
    (local.get $at))

  (func $copy (param $to i32) (param $from i32) (param $n i32)
    (local $i i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
        (i32.store8 (i32.add (local.get $to) (local.get $i))
          (i32.load8_u (i32.add (local.get $from) (local.get $i))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next))))

  (func $equal (param $a i32) (param $b i32) (param $n i32) (result i32)
    (local $i i32)
    (block $no
      (block $yes
        (loop $next
          (br_if $yes (i32.ge_u (local.get $i) (local.get $n)))
          (br_if $no (i32.ne
            (i32.load8_u (i32.add (local.get $a) (local.get $i)))
            (i32.load8_u (i32.add (local.get $b) (local.get $i)))))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $next)))
      (return (i32.const 1)))
    (i32.const 0))

  ;; The first position at or after $at that is no space.
  (func $skip_space (param $at i32) (param $end i32) (result i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (br_if $done (i32.gt_u (i32.load8_u (local.get $at)) (i32.const 32)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (local.get $at))

  ;; Finds  "key" : "value"  in the JSON at $at; $key comes with its quotes.
  ;; It reads one flat object of strings, which is all this plugin is given.
  (func $string_field (param $at i32) (param $end i32) (param $key i32) (param $key_len i32) (result i32)
    (local $c i32)
    (block $absent
      (block $found
        (loop $next
          (br_if $absent (i32.gt_u (i32.add (local.get $at) (local.get $key_len)) (local.get $end)))
          (br_if $found (call $equal (local.get $at) (local.get $key) (local.get $key_len)))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $next)))
      (local.set $at (call $skip_space (i32.add (local.get $at) (local.get $key_len)) (local.get $end)))
      (br_if $absent (i32.ge_u (local.get $at) (local.get $end)))
      (br_if $absent (i32.ne (i32.load8_u (local.get $at)) (i32.const 58)))        ;; :
      (local.set $at (call $skip_space (i32.add (local.get $at) (i32.const 1)) (local.get $end)))
      (br_if $absent (i32.ge_u (local.get $at) (local.get $end)))
      (br_if $absent (i32.ne (i32.load8_u (local.get $at)) (i32.const 34)))        ;; "
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (global.set $value (local.get $at))
      (loop $next
        (br_if $absent (i32.ge_u (local.get $at) (local.get $end)))
        (local.set $c (i32.load8_u (local.get $at)))
        (br_if $absent (i32.eq (local.get $c) (i32.const 92)))                     ;; \
        (if (i32.eq (local.get $c) (i32.const 34))
          (then
            (global.set $value_len (i32.sub (local.get $at) (global.get $value)))
            (return (i32.const 1))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (i32.const 0))

  ;; The value of a request header: its length, its address in cell 1024.
  (func $request_header (param $header i32) (param $header_len i32) (result i32)
    (i32.store (i32.const 1028) (i32.const 0))
    (drop (call $get_header (i32.const 0) (local.get $header) (local.get $header_len)
      (i32.const 1024) (i32.const 1028)))
    (i32.load (i32.const 1028)))

  (func (export "proxy_on_context_create") (param i32 i32))

  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (i32.const 1))

  (func (export "proxy_on_configure") (param $root i32) (param $size i32) (result i32)
    (if (i32.eqz (local.get $size)) (then (return (i32.const 1))))
    (global.set $heap (i32.const 4096))
    (block $refused
      (br_if $refused (call $get_buffer (i32.const 7) (i32.const 0) (local.get $size)  ;; 7: plugin configuration
        (i32.const 1024) (i32.const 1028)))
      (br_if $refused (i32.eqz (call $string_field
        (i32.load (i32.const 1024))
        (i32.add (i32.load (i32.const 1024)) (i32.load (i32.const 1028)))
        (i32.const 0) (i32.const 8))))
      (br_if $refused (i32.eqz (global.get $value_len)))
      (br_if $refused (i32.gt_u (global.get $value_len) (i32.const 64)))
      (call $copy (i32.const 512) (global.get $value) (global.get $value_len))
      (global.set $header_len (global.get $value_len))
      (return (i32.const 1)))
    (drop (call $log (i32.const 4) (i32.const 64) (i32.const 91)))                ;; 4: error
    (i32.const 0))

  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (local $len i32)
    (global.set $heap (i32.const 4096))
    (if (i32.eqz (call $request_header (i32.const 512) (global.get $header_len)))
      (then
        (call $copy (i32.const 2048) (i32.const 208) (i32.const 32))
        (call $copy (i32.const 2080) (i32.const 512) (global.get $header_len))
        (i32.store8 (i32.add (i32.const 2080) (global.get $header_len)) (i32.const 10))
        (drop (call $respond (i32.const 403) (i32.const 192) (i32.const 11)
          (i32.const 2048) (i32.add (i32.const 33) (global.get $header_len))
          (i32.const 0) (i32.const 0) (i32.const -1)))
        (return (i32.const 1))))                                                  ;; pause: the answer is given
    (drop (call $replace_header (i32.const 0) (i32.const 32) (i32.const 12) (i32.const 48) (i32.const 4)))
    (local.set $len (call $request_header (i32.const 16) (i32.const 13)))
    (if (i32.gt_u (local.get $len) (i32.const 1024)) (then (return (i32.const 0))))  ;; a trail without end is not made longer
    (if (local.get $len)
      (then
        (call $copy (i32.const 2048) (i32.load (i32.const 1024)) (local.get $len))
        (i32.store8 (i32.add (i32.const 2048) (local.get $len)) (i32.const 44))      ;; ,
        (local.set $len (i32.add (local.get $len) (i32.const 1)))))
    (call $copy (i32.add (i32.const 2048) (local.get $len)) (i32.const 56) (i32.const 4))
    (drop (call $replace_header (i32.const 0) (i32.const 16) (i32.const 13)
      (i32.const 2048) (i32.add (local.get $len) (i32.const 4))))
    (i32.const 0))
)
