"""Evaluation: `metrics` is arithmetic on boxes and words, `tasks` asks the questions.

Nothing here knows a model: a task calls `predict(queries) -> answers` and
`propose(pictures) -> [(boxes, scores)]`, whoever provides them.
"""
