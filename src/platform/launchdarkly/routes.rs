//! Which requests carry events.
//!
//! The paths are those of ld-relay's `docs/endpoints.md` and of the SDK test harness, plus the beacon path that browser
//! SDKs 3.2 to 5.0 made by appending the old one to the new. They are recognised by their end: SDKs are given a base
//! URI that may have a path, and old ones join it with a doubled slash. Diagnostics and preflights are not events.

use http::Method;

use crate::platform::{Carrier, EventRoute, Route};

/// Returns what a request is. Allocates only for a route with a client-side id.
pub(super) fn classify(method: &Method, path: &str) -> Route {
    let route = match *method {
        Method::POST => post(path),
        Method::GET => beacon(path),
        _ => None,
    };
    route.map_or(Route::PassThrough, Route::Events)
}

fn post(path: &str) -> Option<EventRoute> {
    let mut segments = segments_from_end(path);
    let (last, second, third) = (segments.next()?, segments.next(), segments.next());
    let (template, client_side_id) = match (third, second, last) {
        (Some("mobile"), Some("events"), "bulk") => ("/mobile/events/bulk", None),
        (Some("events"), Some("bulk"), id) => ("/events/bulk/{id}", Some(id)),
        (_, Some("mobile"), "events") => ("/mobile/events", None),
        (_, _, "mobile") => ("/mobile", None),
        (_, _, "bulk") => ("/bulk", None),
        _ => return None,
    };
    Some(EventRoute {
        template,
        carrier: Carrier::Body,
        client_side_id: client_side_id.map(str::to_owned),
    })
}

fn beacon(path: &str) -> Option<EventRoute> {
    let mut segments = segments_from_end(path);
    let id = segments.next()?.strip_suffix(".gif").filter(|id| !id.is_empty())?;
    if segments.next() != Some("a") {
        return None;
    }
    let nested = segments.next().is_some() && segments.next() == Some("bulk") && segments.next() == Some("events");
    Some(EventRoute {
        template: if nested {
            "/events/bulk/{id}/a/{id}.gif"
        } else {
            "/a/{id}.gif"
        },
        carrier: Carrier::Query,
        client_side_id: Some(id.to_owned()),
    })
}

fn segments_from_end(path: &str) -> impl Iterator<Item = &str> {
    path.rsplit('/').filter(|segment| !segment.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(method: Method, path: &str) -> Option<(&'static str, Carrier, Option<String>)> {
        match classify(&method, path) {
            Route::Events(route) => Some((route.template, route.carrier, route.client_side_id)),
            Route::PassThrough => None,
        }
    }

    #[test]
    fn knows_every_route_that_carries_events() {
        let id = Some("0a8a7c4d049f77d84df36cdd".to_owned());
        for (path, expected, id) in [
            ("/bulk", "/bulk", None),
            ("/mobile", "/mobile", None),
            ("/mobile/events", "/mobile/events", None),
            ("/mobile/events/bulk", "/mobile/events/bulk", None),
            ("/events/bulk/0a8a7c4d049f77d84df36cdd", "/events/bulk/{id}", id.clone()),
        ] {
            for path in [
                path.to_owned(),
                format!("/{path}"),
                format!("{path}/"),
                format!("/relay/x{path}"),
            ] {
                assert_eq!(
                    template(Method::POST, &path),
                    Some((expected, Carrier::Body, id.clone())),
                    "{path}"
                );
            }
        }
        for (path, expected) in [
            ("/a/0a8a7c4d049f77d84df36cdd.gif", "/a/{id}.gif"),
            ("/base/a/0a8a7c4d049f77d84df36cdd.gif", "/a/{id}.gif"),
            (
                "/events/bulk/0a8a7c4d049f77d84df36cdd/a/0a8a7c4d049f77d84df36cdd.gif",
                "/events/bulk/{id}/a/{id}.gif",
            ),
        ] {
            assert_eq!(
                template(Method::GET, path),
                Some((expected, Carrier::Query, id.clone())),
                "{path}"
            );
        }
    }

    #[test]
    fn keeps_an_escaped_id_as_it_is() {
        assert_eq!(
            template(Method::POST, "/events/bulk/a%2Fb"),
            Some(("/events/bulk/{id}", Carrier::Body, Some("a%2Fb".to_owned())))
        );
    }

    #[test]
    fn lets_everything_else_pass() {
        for path in [
            "",
            "/",
            "*",
            "/diagnostic",
            "/mobile/events/diagnostic",
            "/events/diagnostic/0a8a7c4d049f77d84df36cdd",
            "/all",
            "/sdk/latest-all",
            "/sdk/evalx/0a8a/contexts/e30",
            "/meval/e30",
            "/flags",
            "/bulky",
            "/Bulk",
            "/bulk.json",
            "/events",
            "/mobile/x",
            "/events/0a8a",
            "/a/x.gif",
        ] {
            assert_eq!(template(Method::POST, path), None, "{path}");
        }
        for path in [
            "/bulk",
            "/a/.gif",
            "/b/x.gif",
            "/a/x.png",
            "/x.gif",
            "/events/bulk/x",
            "/meval/x.gif",
        ] {
            assert_eq!(template(Method::GET, path), None, "{path}");
        }
    }

    #[test]
    fn only_the_methods_that_sdks_use_carry_events() {
        for method in [
            Method::OPTIONS,
            Method::HEAD,
            Method::PUT,
            Method::DELETE,
            Method::PATCH,
        ] {
            assert_eq!(template(method.clone(), "/bulk"), None, "{method}");
            assert_eq!(template(method.clone(), "/events/bulk/x"), None, "{method}");
            assert_eq!(template(method.clone(), "/a/x.gif"), None, "{method}");
        }
    }
}
