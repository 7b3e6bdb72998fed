"""The nodes' schemas against the committed snapshot: workflows that people have saved go on working."""

from scripts import make_schema_snapshot as snapshot


def test_no_node_breaks_a_saved_workflow(client):
    broken = snapshot.breaks(snapshot.read(), snapshot.describe(client.get("/object_info")))
    assert broken == [], "\n".join(("Workflows saved with an earlier version would break:", *broken))


def test_the_snapshot_has_everything_that_nodes_offer(client):
    described = snapshot.describe(client.get("/object_info"))
    assert len(described) >= 11
    assert described == snapshot.read(), (
        f"What was added to a node belongs into {snapshot.SNAPSHOT.name} too: start a ComfyUI with the pack and run "
        f"{snapshot.COMMAND}, then commit the file."
    )
