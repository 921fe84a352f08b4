// A 32-bit program without a library: says "ready", waits for its input, says "ok".
        .code32
        .globl _start
_start: mov $4, %eax
        mov $1, %ebx
        mov $ready, %ecx
        mov $6, %edx
        int $0x80
        mov $3, %eax
        xor %ebx, %ebx
        mov $byte, %ecx
        mov $1, %edx
        int $0x80
        mov $4, %eax
        mov $1, %ebx
        mov $ok, %ecx
        mov $3, %edx
        int $0x80
        mov $1, %eax
        xor %ebx, %ebx
        int $0x80
        .data
ready:  .ascii "ready\n"
ok:     .ascii "ok\n"
byte:   .byte 0
