"""The demo's jobs on the session's server: each shipped workflow with the tiny models, read back frame by frame."""

import pytest

from scripts import demo

CLIP = demo.Clip(width=96, height=64, frames=9, steps=2)


@pytest.mark.parametrize("job", demo.JOBS, ids=lambda job: job.workflow)
def test_a_shipped_workflow_gives_the_video_that_was_asked_for(client, host, tmp_path, tiny_files, job):
    image = client.upload(demo.draw_image(tmp_path / "start.png"))
    prompt, page = demo.load(job)
    prompt = demo.tiny(prompt, job, tiny_files, CLIP, "a blue boat", image)
    page = demo.tiny_page(page, prompt)
    (path,) = client.download(client.run(prompt, page), tmp_path)
    row = demo.check_video(path, CLIP, prompt, page)
    assert (row["frames"], row["size"]) == (9, "96x64")
