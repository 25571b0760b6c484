//! Why the relay answers by itself, and whose fault it was: said in the answer, the log and a metric.

/// Whose fault a failure was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client's.
    Client,
    /// The upstream's, or the network's on the way there.
    Upstream,
    /// Ours.
    Relay,
}

impl Fault {
    /// Returns the word used in `x-flagtap-error` and as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Relay => "relay",
        }
    }
}

/// Why the relay answers by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The client stopped sending its body.
    #[error("the request body stalled")]
    BodyStalled,
    /// The client's body broke off or was not framed as announced.
    #[error("the request body broke off")]
    BodyAborted,
    /// No connection: name, TCP, egress proxy or TLS.
    #[error("the upstream cannot be reached")]
    UpstreamUnreachable,
    /// The egress proxy wants other credentials.
    #[error("the egress proxy demands other credentials")]
    ProxyRefused,
    /// No answer in time.
    #[error("the upstream did not answer in time")]
    UpstreamTimeout,
    /// The connection broke before the answer.
    #[error("the upstream broke the connection")]
    UpstreamBroke,
    /// Over the limit on requests at once.
    #[error("too many requests at once")]
    Overloaded,
    /// The request's target cannot be sent on.
    #[error("the request cannot be forwarded")]
    NotForwardable,
    /// `tee.on_failure: refuse` and the copy could not be kept.
    #[error("the events could not be kept for export; send them again")]
    NotKept,
    /// The request's head has more headers or bytes than the relay takes.
    #[error("the request's head is larger than limits.header_bytes or has more than limits.headers headers")]
    HeadTooLarge,
    /// The request's head is no HTTP.
    #[error("the request's head is no HTTP")]
    HeadMalformed,
    /// A defect of the relay.
    #[error("internal error")]
    Internal,
}

impl Failure {
    /// Every failure.
    pub const ALL: [Self; 12] = [
        Self::BodyStalled,
        Self::BodyAborted,
        Self::UpstreamUnreachable,
        Self::ProxyRefused,
        Self::UpstreamTimeout,
        Self::UpstreamBroke,
        Self::Overloaded,
        Self::NotForwardable,
        Self::NotKept,
        Self::HeadTooLarge,
        Self::HeadMalformed,
        Self::Internal,
    ];

    /// Returns whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::BodyStalled | Self::BodyAborted | Self::NotForwardable | Self::HeadMalformed => Fault::Client,
            Self::UpstreamUnreachable | Self::ProxyRefused | Self::UpstreamTimeout | Self::UpstreamBroke => {
                Fault::Upstream
            }
            Self::Overloaded | Self::NotKept | Self::HeadTooLarge | Self::Internal => Fault::Relay,
        }
    }

    /// Returns the word used in `x-flagtap-error` and as a metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BodyStalled => "body_stalled",
            Self::BodyAborted => "body_aborted",
            Self::UpstreamUnreachable | Self::ProxyRefused => "unreachable",
            Self::UpstreamTimeout => "timeout",
            Self::UpstreamBroke => "connection_broken",
            Self::Overloaded => "overloaded",
            Self::NotForwardable => "not_forwardable",
            Self::NotKept => "not_kept",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadMalformed => "head_malformed",
            Self::Internal => "internal",
        }
    }
}
