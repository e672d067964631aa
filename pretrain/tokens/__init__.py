"""Tokens: the tokenizer, and what each token reduction keeps."""
