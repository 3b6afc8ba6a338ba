"""llama-server's side: how bioproxy reaches it, asks it, and knows which process and which model answers.

To be read in this order, from the network upwards:

* `connections`, `http_client`: TCP, TLS and HTTP, and which call may share a connection;
* `failures`, `upstream`: making a call, cancelling it, and one language for what goes wrong;
* `api`: llama-server's endpoints as functions, and `prefix_tokens`, which needs several of them;
* `process`, `process_watch`, `model_identity`: which llama-server runs there now, and with which model;
* `timings`, `speed`: what its answers say about reuse and speed.

Nothing here knows templates, the gate, or what the slot should hold.
"""
