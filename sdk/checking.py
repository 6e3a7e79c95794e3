"""Opening a fresh build for the gates: on its engine, or on what stands in for it here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from sdk.runtimes import open_session, support_of
from sdk.runtimes.session import Session
from sdk.target import Target

if TYPE_CHECKING:
    from sdk.compilers.program import Build, Program


def open_build(build: Build, program: Program, target: Target, *, threads: int) -> Session:
    """A session on the build's engine; its stand-in where this machine cannot run the target."""
    if support_of(target).run:
        return open_session(
            build.file, program.signature, target, threads=threads, kernels=build.kernels
        )
    from sdk.compilers.kernels import plan  # imports torch

    compiler = importlib.import_module(f"sdk.compilers.{target.engine}")
    planned = plan(program, target).program
    return cast(Session, compiler.open_check(build, planned, target, threads=threads))
