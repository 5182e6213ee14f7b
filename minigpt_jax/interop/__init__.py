"""The weights anywhere: GPT-2 from Hugging Face into a run of ours, and a run of ours to Hugging Face and GGUF.

Nothing here needs torch. Read gpt2 (whose tensor is whose), vocabulary (the tokenizer in the forms others read), then
the three commands: import_gpt2, export_hf, export_gguf.
"""
