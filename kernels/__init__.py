"""Plugin kernels: each described once by a plain torch function, some with native code.

A kernel is a folder; its name is the kernel's (`registry`). `spec` makes the operator
`edge::<name>` of it, `library` finds or builds the native code and calls it.
"""
