;; What every guest of this folder has: memory, an allocator that never frees, and the answers of `provision`.
;; tests/it/guests.rs appends it to each guest and puts the contract's version in the place of VERSION.
;; Below 1024 lie the answer (at 16) and what calls return (at 64); from 1024 on a guest's own data; from 65536 on what is allocated.
(memory (export "memory") 2)
(global $free (mut i32) (i32.const 65536))

(func (export "cabi_realloc") (param i32 i32) (param $align i32) (param $bytes i32) (result i32)
  (local $start i32)
  (local.set $start (i32.and (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
                             (i32.sub (i32.const 0) (local.get $align))))
  (global.set $free (i32.add (local.get $start) (local.get $bytes)))
  (block $fits
    (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
    (br_if $fits (i32.ne (memory.grow (i32.add (i32.shr_u (local.get $bytes) (i32.const 16)) (i32.const 1))) (i32.const -1)))
    unreachable)
  (local.get $start))

(func $ok (result i32)
  (i32.store8 (i32.const 16) (i32.const 0))
  (i32.const 16))

(func $refusal (param $case i32) (result i32)
  (i32.store8 (i32.const 16) (i32.const 1))
  (i32.store8 (i32.const 20) (local.get $case))
  (i32.const 16))

(func $later (param $text i32) (param $bytes i32) (param $seconds i32) (result i32)
  (i32.store (i32.const 24) (local.get $text))
  (i32.store (i32.const 28) (local.get $bytes))
  (i32.store (i32.const 32) (local.get $seconds))
  (call $refusal (i32.const 0)))

(func $never (param $text i32) (param $bytes i32) (result i32)
  (i32.store (i32.const 24) (local.get $text))
  (i32.store (i32.const 28) (local.get $bytes))
  (call $refusal (i32.const 1)))

(func $other (param $text i32) (param $bytes i32) (result i32)
  (i32.store8 (i32.const 24) (i32.const 1))
  (i32.store (i32.const 28) (local.get $text))
  (i32.store (i32.const 32) (local.get $bytes))
  (call $refusal (i32.const 2)))

;; Whether the call that returned at 64 answered `ok`.
(func $answered-ok (result i32) (i32.eqz (i32.load8_u (i32.const 64))))
;; Whether it answered `err(denied)`.
(func $answered-denied (result i32)
  (i32.and (i32.load8_u (i32.const 64)) (i32.eqz (i32.load8_u (i32.const 68)))))
;; The resource that it answered.
(func $answered-handle (result i32) (i32.load (i32.const 68)))
