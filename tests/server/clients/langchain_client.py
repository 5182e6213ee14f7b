"""What langchain-openai gets from a server."""

import json
import sys

from langchain_openai import ChatOpenAI, OpenAI

settings = {"base_url": sys.argv[1], "api_key": "none", "temperature": 0, "max_retries": 0}
settings |= {"model": "small-chat", "max_tokens": 20}
chat = ChatOpenAI(**settings)
conversation = [("human", "The river reads")]
answer = chat.invoke(conversation)
result = {
    "chat": answer.content,
    "chat_stream": "".join(part.content for part in chat.stream(conversation)),
    "completion": "The river" + OpenAI(**settings).invoke("The river"),
    "tokens": answer.usage_metadata["output_tokens"],
}
print(json.dumps(result))
