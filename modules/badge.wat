;; badge: an HTTP plugin that signs every request with its name.
;;
;; Configuration: {"name": "<1 to 64 bytes, no backslash>"}; anything else is refused.
;; Request:  appends the name to the header x-stile-trail ("first,second"), so that
;;           the order in which plugins ran can be read off the request.
;; Response: appends the name to x-stile-badge.
;;
;; The name is kept once per VM: a proxy must give each plugin a VM of its own
;; (a vm_id of its own), as stile does.
(module
  (import "env" "proxy_log"
    (func $log (param i32 i32 i32) (result i32)))
  (import "env" "proxy_get_buffer_bytes"
    (func $get_buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_value"
    (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value"
    (func $replace_header (param i32 i32 i32 i32 i32) (result i32)))

  (memory (export "memory") 1 16)

  ;; 0..511 constants · 512..575 the name · 1024 two result cells
  ;; 2048..4095 the header under construction · 4096.. heap, emptied at each callback
  (data (i32.const 0) "\"name\"")
  (data (i32.const 16) "x-stile-trail")
  (data (i32.const 32) "x-stile-badge")
  (data (i32.const 64) "badge: the configuration must be {\"name\": \"...\"}, 1 to 64 bytes without backslash")

  (global $heap (mut i32) (i32.const 4096))
  (global $name_len (mut i32) (i32.const 0))
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

  ;; Appends the name to a header of map $map, after a comma if it has a value already.
  (func $append (param $map i32) (param $header i32) (param $header_len i32)
    (local $len i32)
    (i32.store (i32.const 1028) (i32.const 0))
    (drop (call $get_header (local.get $map) (local.get $header) (local.get $header_len)
      (i32.const 1024) (i32.const 1028)))
    (local.set $len (i32.load (i32.const 1028)))
    (if (i32.gt_u (local.get $len) (i32.const 1024)) (then (return)))   ;; a trail without end is not made longer
    (if (local.get $len)
      (then
        (call $copy (i32.const 2048) (i32.load (i32.const 1024)) (local.get $len))
        (i32.store8 (i32.add (i32.const 2048) (local.get $len)) (i32.const 44))    ;; ,
        (local.set $len (i32.add (local.get $len) (i32.const 1)))))
    (call $copy (i32.add (i32.const 2048) (local.get $len)) (i32.const 512) (global.get $name_len))
    (drop (call $replace_header (local.get $map) (local.get $header) (local.get $header_len)
      (i32.const 2048) (i32.add (local.get $len) (global.get $name_len)))))

  (func (export "proxy_on_context_create") (param i32 i32))

  (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
    (i32.const 1))

  (func (export "proxy_on_configure") (param $root i32) (param $size i32) (result i32)
    (global.set $heap (i32.const 4096))
    (block $refused
      (br_if $refused (i32.eqz (local.get $size)))
      (br_if $refused (call $get_buffer (i32.const 7) (i32.const 0) (local.get $size)  ;; 7: plugin configuration
        (i32.const 1024) (i32.const 1028)))
      (br_if $refused (i32.eqz (call $string_field
        (i32.load (i32.const 1024))
        (i32.add (i32.load (i32.const 1024)) (i32.load (i32.const 1028)))
        (i32.const 0) (i32.const 6))))
      (br_if $refused (i32.eqz (global.get $value_len)))
      (br_if $refused (i32.gt_u (global.get $value_len) (i32.const 64)))
      (call $copy (i32.const 512) (global.get $value) (global.get $value_len))
      (global.set $name_len (global.get $value_len))
      (return (i32.const 1)))
    (drop (call $log (i32.const 4) (i32.const 64) (i32.const 81)))                ;; 4: error
    (i32.const 0))

  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (global.set $heap (i32.const 4096))
    (call $append (i32.const 0) (i32.const 16) (i32.const 13))                    ;; 0: request headers
    (i32.const 0))

  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (global.set $heap (i32.const 4096))
    (call $append (i32.const 2) (i32.const 32) (i32.const 13))                    ;; 2: response headers
    (i32.const 0))
)
