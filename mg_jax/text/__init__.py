"""Text: tokenizer, chat templates, neutral markup, task instructions and codecs."""
