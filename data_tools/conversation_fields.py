"""The fields of conversations that are known, as the formats of other programs name them."""

# A schema is the field of a whole dialogue, or the fields of a question and its answer.
Schema = tuple[str, ...]

DIALOGUES = ("messages", "conversations", "conversation", "dialogue", "dialog")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
)
ANSWERS = ("completion", "response", "output", "answer")
SCHEMAS: tuple[Schema, ...] = (
    *((dialogue,) for dialogue in DIALOGUES),
    *PAIRS,
    # A dialogue that ends with a question, and its answer in another field.
    *((dialogue, answer) for dialogue in DIALOGUES for answer in ANSWERS),
)
# Texts that are added below the question of a pair.
ADDED = ("input", "context", "passage", "article")
# Those that a dialogue has no place for. `input` may stand beside one, as a copy of its parts.
ADDED_TO_PAIRS_ONLY = ("context", "passage", "article")
# The system message of a row, and the turns before those of its schema.
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
HISTORY = ("history", "chat_history", "conversation_history")
# What the chat template has no place for, by what it is.
TOOLS = ("tools", "functions", "tool_calls", "function_call")
PREFERENCES = (
    "chosen",
    "preferred_output",
    "rejected",
    "rejected_response",
    "rejected_messages",
    "non_preferred_output",
)
MATERIAL = ("documents", "contexts", "choices", "options", "suffix")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
REASONING = ("reasoning", "reasoning_content", "thinking")
UNSUPPORTED = (
    *TOOLS,
    *PREFERENCES,
    *MATERIAL,
    *MEDIA,
    *REASONING,
    "chat_template_kwargs",
    # Programs differ in what its 1 means.
    "mask",
)
UNSUPPORTED_IN_TURN = (*UNSUPPORTED, "train_detail", "refusal")
# Field -> the value with which an answer is learned. `label` counts if it is true or false.
WEIGHTS_OF_ROW = {
    "weight": 1,
    "loss_weight": 1,
    "sample_weight": 1,
    "train": 1,
    "masked": 0,
    "label": 1,
    "kto_tag": 1,
}
WEIGHTS_OF_TURN = {
    "weight": 1,
    "loss_weight": 1,
    "loss_mask": 1,
    "loss_scale": 1,
    "loss": 1,
    "train": 1,
    "training": 1,
    "train_on_turn": 1,
    "trainable": 1,
    "masked": 0,
}
ROLE = ("role", "from")
CONTENT = ("content", "value")
# Other programs' names of roles. The chat template checks all others.
ROLES = {
    "human": "user",
    "prompter": "user",
    "developer": "system",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}
# How JSON, columnar files and CSV write the weights 0 and 1.
ZERO_OR_ONE = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
# All known fields of a row, for formats that can leave the others out.
FIELDS = tuple(
    dict.fromkeys(
        (
            *(name for schema in SCHEMAS for name in schema),
            *(*ADDED, *SYSTEM, *HISTORY, *WEIGHTS_OF_ROW, *UNSUPPORTED),
        )
    )
)
