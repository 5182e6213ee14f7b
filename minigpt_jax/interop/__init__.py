"""Weights in other programs' formats: from Hugging Face, and runs to Hugging Face and GGUF.

Nothing here needs torch. Read gpt2 and nanochat (names and shapes of tensors) and vocabulary (the
tokenizer) first, then the formats hugging_face and gguf_file, then the commands import_hf,
export_hf and export_gguf. hub downloads and uploads; push does so while a run trains.
"""
