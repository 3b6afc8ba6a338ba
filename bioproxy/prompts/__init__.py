"""Prompts as text: which templates a request names, and what llama-server will evaluate for it.

A reader may take the modules in this order:

* `templates`, `template_reading` and `template_poller`: template files, read from disk and kept up to date;
* `api_formats` (with `parsed_request`, `anthropic_messages`, `openai_responses`): where each API has the user's texts;
* `request_search` with `template_search`, then `filling`: the templates that a request names, and the request with them
  filled in;
* `chat_request`: what decides about reuse for a chat that names no template;
* `prompt_shape`, `conversation`, `digests`: fingerprints that tell which prompts begin with the same tokens.

Everything except `template_poller` is pure or plain blocking Python, and can be read and tested without Twisted.
"""
