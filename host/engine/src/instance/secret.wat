;; Leaves a secret in its memory, globals and table, and answers with whatever it finds there on arrival.
;; `leak` is 0 when nothing was found.
(module
  (memory (export "memory") 32)
  (table 16 funcref)
  (global $bump (mut i32) (i32.const 4096))
  (global $secret32 (mut i32) (i32.const 0))
  (global $secret64 (mut i64) (i64.const 0))
  (global $secretf (mut f64) (f64.const 0))
  (elem declare func $mark)
  (data (i32.const 16) "leak")
  (func $mark)

  (func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $bump) (i32.const 7)) (i32.const -8)))
    (global.set $bump (i32.add (local.get $at) (local.get $size)))
    (local.get $at))

  ;; ORs together, then overwrites, the 64-bit words of [at, at + bytes).
  (func $scan (param $at i32) (param $bytes i32) (result i64)
    (local $end i32) (local $found i64)
    (local.set $end (i32.add (local.get $at) (local.get $bytes)))
    (loop $next
      (local.set $found (i64.or (local.get $found) (i64.load (local.get $at))))
      (i64.store (local.get $at) (i64.const 0x5ec2e75ec2e75ec2))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (local.get $found))

  (func (export "modelhost:inference/model@0.1.0#load") (param i32 i32 i32 i32) (result i32)
    unreachable)

  (func (export "modelhost:inference/model@0.1.0#infer")
    (param i32 i32 i32 i32 i32 i32) (result i32)
    (local $found i64)
    ;; Near the start, across a page, beyond one mebibyte (what a pool may keep resident), and in grown memory.
    (local.set $found (call $scan (i32.const 65536) (i32.const 8192)))
    (local.set $found (i64.or (local.get $found) (call $scan (i32.const 1500000) (i32.const 4096))))
    (local.set $found (i64.or (local.get $found) (call $scan (i32.const 2093056) (i32.const 4096))))
    (if (i32.ne (memory.grow (i32.const 1)) (i32.const 32))
      (then (local.set $found (i64.or (local.get $found) (i64.const 1)))))
    (local.set $found (i64.or (local.get $found) (call $scan (i32.const 2097152) (i32.const 4096))))

    (local.set $found (i64.or (local.get $found) (i64.extend_i32_u (global.get $secret32))))
    (local.set $found (i64.or (local.get $found) (global.get $secret64)))
    (local.set $found (i64.or (local.get $found) (i64.reinterpret_f64 (global.get $secretf))))
    (global.set $secret32 (i32.const 0x5ec2e7))
    (global.set $secret64 (i64.const 0x5ec2e7))
    (global.set $secretf (f64.const 5.5))

    (if (i32.eqz (ref.is_null (table.get 0 (i32.const 3))))
      (then (local.set $found (i64.or (local.get $found) (i64.const 2)))))
    (table.set 0 (i32.const 3) (ref.func $mark))

    ;; shape [1] at 24, data at 32, the tensor at 40, the result at 72
    (i64.store (i32.const 24) (i64.const 1))
    (i64.store (i32.const 32) (local.get $found))
    (i32.store (i32.const 40) (i32.const 16))
    (i32.store (i32.const 44) (i32.const 4))
    (i32.store8 (i32.const 48) (i32.const 4)) ;; uint64
    (i32.store (i32.const 52) (i32.const 24))
    (i32.store (i32.const 56) (i32.const 1))
    (i32.store (i32.const 60) (i32.const 32))
    (i32.store (i32.const 64) (i32.const 8))
    (i32.store8 (i32.const 72) (i32.const 0)) ;; ok
    (i32.store (i32.const 76) (i32.const 40))
    (i32.store (i32.const 80) (i32.const 1))
    (i32.const 72))
)
