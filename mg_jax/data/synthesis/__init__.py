"""Training data made of pictures: by an endpoint that sees them and a detector, or by annotations.

transport, client   the chat-completions protocol; retries, pauses, rate limit
prompts             what is asked, as text files that one can edit; replies reads what is answered
work, case          the pictures, and one of them with the tools to work on it
steps               recognition, grounding, relations
recipes             tiny_grounding_gpt, groma, ferret: from a picture to conversations
filters             what is left out, counted
journal, engine     several pictures at once; resumable, nothing lost and nothing twice
output              our jsonl and the report

`launch.synthesize` is the command, docs/synthesis.md the manual.
"""
