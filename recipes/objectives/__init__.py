"""Objectives: pure functions of student and teacher outputs, each with its paper's equation."""
