"""Core ML's intermediate language (MIL): making it of a program, and evaluating a saved one."""
