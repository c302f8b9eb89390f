//! Kinds of objects of the own API server that services of several clusters are made of.

use std::fmt;

use kube::api::ApiResource;

/// A kind that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Namespace; the only one without a namespace.
    Namespace,
    /// `multicluster.x-k8s.io/v1beta1` ServiceExport.
    Export,
    /// `multicluster.x-k8s.io/v1beta1` ServiceImport.
    Import,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    Slice,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Namespace, Self::Export, Self::Import, Self::Service, Self::Slice];

    /// As the API calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Export => "ServiceExport",
            Self::Import => "ServiceImport",
            Self::Service => "Service",
            Self::Slice => "EndpointSlice",
        }
    }

    /// Plural, as in paths and labels of metrics.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Export => "serviceexports",
            Self::Import => "serviceimports",
            Self::Service => "services",
            Self::Slice => "endpointslices",
        }
    }

    const fn group_version(self) -> (&'static str, &'static str) {
        match self {
            Self::Namespace | Self::Service => ("", "v1"),
            Self::Export | Self::Import => ("multicluster.x-k8s.io", "v1beta1"),
            Self::Slice => ("discovery.k8s.io", "v1"),
        }
    }

    /// `group/version`.
    pub fn api_version(self) -> String {
        match self.group_version() {
            ("", version) => version.to_owned(),
            (group, version) => format!("{group}/{version}"),
        }
    }

    /// For the client.
    pub fn resource(self) -> ApiResource {
        let (group, version) = self.group_version();
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: self.api_version(),
            kind: self.name().to_owned(),
            plural: self.plural().to_owned(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
