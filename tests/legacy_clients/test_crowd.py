"""The crowd of crowd.py, smaller."""

import crowd


def test_a_worker_that_does_not_read_disturbs_nobody(server):
    assert crowd.run(server.process, f"http://{server.address}", 100) > 0
