"""The HTTP interface that OpenAI's clients speak, over an `AsyncLLM`. Nothing here imports torch or transformers."""
