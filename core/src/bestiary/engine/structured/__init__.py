"""Answers in a form that is asked for. No torch.

json_schema   what of JSON Schema is enforced, checked with the place of every mistake
llguidance    the built-in backend
process       grammars tried in a process of their own, which may hang or crash, before a request is admitted
child         that process
follower      an answer's grammar in the engine, kept in step with its tokens beside the model's work
"""
