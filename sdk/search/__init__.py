"""The search among precisions: `precision="auto"`, `sdk.tune`, `edge tune`.

`run` tries the candidates, `cached` builds them or takes them from the `cache`, `layers` times
them layer by layer, `front` chooses, `verdicts` says why, `result` and `report` tell of it.
"""
