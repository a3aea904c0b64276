"""The store in Redis: a transition is one EVALSHA, messages come by one subscription."""
