"""One loop for all decoding: a target, and optionally a drafter whose guesses the target verifies.

Plain decoding is the loop without a drafter. The law of the output is the target's alone.
"""
