"""`bestiary chat`: a conversation in the terminal, with a model that is loaded here or with a server."""
