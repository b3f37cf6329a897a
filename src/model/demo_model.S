/* The demo model as constant data of the program, from one page boundary on. */
        .section .rodata
        .balign 4096
        .global gemma_demo_model_begin
gemma_demo_model_begin:
        .incbin GEMMA_DEMO_MODEL
        .global gemma_demo_model_end
gemma_demo_model_end:
        .byte 0

        /* Without this note the linker would give the program an executable stack. */
        .section .note.GNU-stack, "", %progbits
