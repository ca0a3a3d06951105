"""What gRPC calls say beside their messages."""

CAN_RESUME = "rayline-can-resume"  # of a caller: it resumes by itself, so it can be sent away at any time
ROUTERS = "rayline-routers"  # to such a caller, before the first event: where else the stream can be read
