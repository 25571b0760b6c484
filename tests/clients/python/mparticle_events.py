"""mparticle_events.py URL KEY SECRET: one batch and a bulk of two, with mParticle's own client."""
import sys

import mparticle

url, key, secret = sys.argv[1:]
configuration = mparticle.Configuration()
configuration.host = url + "/v2"
configuration.api_key, configuration.api_secret = key, secret
api = mparticle.EventsApi(configuration)


def batch(user):
    batch = mparticle.Batch()
    batch.environment = "development"
    batch.user_identities = mparticle.UserIdentities(customerid=user)
    batch.source_request_id = "request-" + user
    event = mparticle.AppEvent("feature", "other")
    event.timestamp_unixtime_ms = 1705111746120
    event.source_message_id = "message-" + user
    event.custom_attributes = {"key": "flag", "value": "true"}
    view = mparticle.ScreenViewEvent()
    view.screen_name = "https://a.example/"
    batch.events = [event, view]
    return batch


api.upload_events(batch("one"))
api.bulk_upload_events([batch("two"), batch("three")])
