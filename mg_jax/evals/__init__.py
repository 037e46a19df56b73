"""Evaluation: `metrics` is arithmetic on boxes and words, `tasks` asks the questions.

Conversations of a data set say themselves what to ask; of annotated pictures without any, `asking`
makes questions.

Nothing here knows a model: a task calls `predict(queries) -> answers` and
`propose(pictures) -> [(boxes, scores)]`, whoever provides them.
"""
