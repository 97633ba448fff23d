"""An engine in a process of its own, at the other end of a pair of sockets.

messages     what the two say: typed, encoded by msgspec, never pickled
child        the engine process
parent       its way to the one that started it
handle       the parent's end: starts one, reads and writes frames
supervisor   watches one, ends a stalled one, starts the next
"""
