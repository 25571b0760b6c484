"""segment.py URL WRITE_KEY: one message of each kind that flagtap sends, with Segment's own client, plain and gzipped."""
import datetime
import sys

# This file's own folder has a module of the client's name.
sys.path.pop(0)
from segment.analytics.client import Client  # noqa: E402

url, write_key = sys.argv[1:]
errors = []
for gzip in (False, True):
    client = Client(write_key, host=url, gzip=gzip, max_retries=0, on_error=lambda error, _: errors.append(error))
    moment = datetime.datetime(2024, 1, 13, 2, 9, 6, 120000, tzinfo=datetime.timezone.utc)
    client.track("u-17", "feature", {"key": "flag", "n": 1}, timestamp=moment, message_id=f"own-id-{gzip}")
    client.track(None, "custom", {}, anonymous_id="d-9")
    client.page("u-17", properties={"url": "https://a.example/?q=1"})
    client.alias("anon-9", "u-17")
    client.flush()
    client.join()
sys.exit(str(errors) if errors else 0)
