"""One engine in several processes: every rank derives the same plans from the same requests.

seat.py        where this process sits among the ranks, and how they meet
places.py      which groups a rank belongs to
team.py        its process groups, what is broadcast, what is exchanged
messages.py    the typed messages
executor.py    runs this rank's part of a plan: tensor-parallel slices, pipeline stages
eplb.py        moves experts among ranks after measured load
workers.py     starts the other ranks of this machine, and watches ranks
worker.py      what such a process does
ray_workers.py has Ray start the other ranks; ray_cluster.py: the cluster and the places in it; ray_actor.py: the
               process that Ray starts
"""
