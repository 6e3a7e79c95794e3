"""The coverage table: which architectures of `transformers` pass their gates on which engine.

    python -m tests.coverage                    what is missing or changed, then docs/coverage.*
    python -m tests.coverage --retry failed     the same, and the failed pairs again
    python -m tests.coverage --only BERT T5 --engine openvino

Each pair is a real `sdk.compile` with its gates. It takes hours on two cores, and stopped half-way
it goes on from there.
"""
