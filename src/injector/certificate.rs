//! The webhook's own certificate: made with an authority of its own, whose key nobody keeps, and judged as the API server
//! would judge it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use crate::secret::Secret;

/// How long a certificate and its authority are valid.
const VALID: Duration = Duration::from_secs(90 * 24 * 3600);
/// What must be left of that; less is the time for a new one.
const LEFT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clocks of API servers may be behind.
const SKEW: Duration = Duration::from_secs(24 * 3600);

/// A certificate with what belongs to it, all PEM.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Identity {
    /// The certificate.
    pub(super) certificate: String,
    /// Its key.
    pub(super) key: Secret,
    /// The authority that signed it, and then the one before.
    pub(super) authorities: String,
}

/// Makes a certificate for these names.
pub(super) fn make(names: &[String], now: SystemTime) -> Result<Identity, rcgen::Error> {
    // Whole days, as rcgen's own dates are: no other library for them.
    let date = |at: SystemTime| {
        let day = Timestamp::try_from(at).unwrap_or_default().to_zoned(TimeZone::UTC);
        date_time_ymd(
            i32::from(day.year()),
            day.month().unsigned_abs(),
            day.day().unsigned_abs(),
        )
    };
    let (begin, end) = (now - SKEW, now + VALID);
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // A name of its own for each, so that two authorities in one bundle are told apart.
    let name = format!("flagtap injector {seconds}");
    authority.distinguished_name.push(DnType::CommonName, name);
    (authority.not_before, authority.not_after) = (date(begin), date(end));
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let mut params = CertificateParams::new(names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (date(begin), date(end));
    let key = KeyPair::generate()?;
    Ok(Identity {
        certificate: params.signed_by(&key, &authority)?.pem(),
        key: Secret::new(key.serialize_pem()),
        authorities: authority.pem(),
    })
}

impl Identity {
    /// Returns why this cannot go on being shown under these names, if it cannot: too little time left included.
    pub(super) fn unusable(&self, names: &[String], now: SystemTime) -> Option<String> {
        self.verify(names, now + LEFT).err()
    }

    fn verify(&self, names: &[String], at: SystemTime) -> Result<(), String> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(words)?;
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(self.authorities.as_bytes()) {
            roots.add(authority.map_err(words)?).map_err(words)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().map_err(words)?;
        let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        for name in names {
            let name = ServerName::try_from(name.as_str()).map_err(words)?;
            verifier
                .verify_server_cert(&certificate, &[], &name, &[], at)
                .map_err(words)?;
        }
        Ok(())
    }

    /// Adds the newest authority of the identity before, so that what it signed stays trusted for a while.
    pub(super) fn after(mut self, before: &Identity) -> Self {
        const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
        const END: &str = "-----END CERTIFICATE-----";
        let first = before
            .authorities
            .split_once(BEGIN)
            .and_then(|(_, rest)| rest.split_once(END));
        if let Some((body, _)) = first {
            let text = format!("{BEGIN}{body}{END}\n");
            // What somebody else wrote may be anything.
            if CertificateDer::from_pem_slice(text.as_bytes()).is_ok() {
                self.authorities.push_str(&text);
            }
        }
        self
    }
}

fn words(error: impl ToString) -> String {
    error.to_string()
}
