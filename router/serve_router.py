"""Ray Serve's request router, told by our policy: the call goes to the group that was chosen.

Our policy picks a group and sends the request over its own link. The DeploymentHandle call beside it
names that group as `group_id`, so that Serve counts the stream where it runs.
"""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class ChosenGroupRouter(RequestRouter):
    """Ranks the replica named by the call's `group_id` first and alone; without one, any replica will do.

    A group that is gone is stood in for by any other, which ends the call: Serve asks for replicas again and again,
    without a pause in which its event loop could do anything else, as long as it is given none.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        wanted = pending_request.kwargs.get("group_id") if pending_request is not None else None
        if wanted is None:
            return [candidate_replicas]
        chosen = [replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]
        return [chosen or candidate_replicas]
