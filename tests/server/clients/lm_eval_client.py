"""What lm-evaluation-harness gets from a server through `local-completions`, for a local task."""

import json
import sys

import lm_eval
from lm_eval.tasks import TaskManager

url, model, tokenizer, tasks = sys.argv[1:]
results = lm_eval.simple_evaluate(
    "local-completions",
    model_args={
        "base_url": f"{url}/completions",
        "model": model,
        "tokenizer": tokenizer,
        "tokenizer_backend": "huggingface",
        "tokenized_requests": False,
        # One less than the context: the server adds the document separator.
        "max_length": 31,
    },
    tasks=["endings"],
    task_manager=TaskManager(include_path=tasks),
    batch_size=16,
)
samples = sorted(results["samples"]["endings"], key=lambda sample: sample["doc_id"])
print(json.dumps([[response[0] for response in sample["resps"]] for sample in samples]))
