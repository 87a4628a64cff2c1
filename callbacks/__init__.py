"""Lightning and Hydra callbacks: masks applied and held while a model trains; the report when a sweep ends."""
