"""What litellm gets from a server."""

import json
import sys

import litellm

where = {"api_base": sys.argv[1], "api_key": "none", "temperature": 0, "max_tokens": 20}
messages = [{"role": "user", "content": "The river reads"}]
chat = litellm.completion("openai/small-chat", messages, **where)
stream = litellm.completion("openai/small-chat", messages, stream=True, **where)
text = litellm.text_completion("The river", "text-completion-openai/small-chat", **where)
result = {
    "chat": chat.choices[0].message.content,
    "chat_stream": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
    "completion": "The river" + text.choices[0].text,
}
print(json.dumps(result))
