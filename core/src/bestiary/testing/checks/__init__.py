"""The checks of a contract, one module a topic; `contract.ModelContract` inherits them all."""
