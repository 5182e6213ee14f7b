"""Weights in other programs' formats: GPT-2 from Hugging Face, and runs to Hugging Face and GGUF.

Nothing here needs torch. Read gpt2 (names and shapes of tensors) and vocabulary (the tokenizer)
first, then the formats hugging_face and gguf_file, then the commands import_gpt2, export_hf and
export_gguf.
"""
