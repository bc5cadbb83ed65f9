package v1alpha1

// MaxEpoch bounds the epoch of a status: what is not below it is somebody else's word and
// is not believed. JSON numbers are exact up to it.
const MaxEpoch = 1 << 53

// The types of a WasmPlugin's conditions.
const (
	ConditionAccepted     = "Accepted"     // the document is valid
	ConditionResolvedRefs = "ResolvedRefs" // what it names may be read, and was read
	ConditionProgrammed   = "Programmed"   // proxies run it
)

// The reasons of Accepted.
const (
	ReasonAccepted = "Accepted"
	ReasonInvalid  = "Invalid"
)

// The reasons of ResolvedRefs. TagGone comes with status True: what runs is pinned.
const (
	ReasonResolved             = "Resolved"
	ReasonPending              = "Pending"
	ReasonPullSecretNotFound   = "PullSecretNotFound"
	ReasonPullSecretInvalid    = "PullSecretInvalid"
	ReasonUnauthorized         = "Unauthorized"
	ReasonImageNotFound        = "ImageNotFound"
	ReasonTagGone              = "TagGone"
	ReasonSourceNotAllowed     = "SourceNotAllowed"
	ReasonRegistryUnreachable  = "RegistryUnreachable"
	ReasonTooManyProofs        = "TooManyProofs"
	ReasonDigestMismatch       = "DigestMismatch"
	ReasonModuleInvalid        = "ModuleInvalid"
	ReasonModuleTooLarge       = "ModuleTooLarge"
	ReasonModuleRejectedConfig = "ModuleRejectedConfig"
	ReasonSignatureInvalid     = "SignatureInvalid"
	ReasonNotVerifiable        = "NotVerifiable"
	ReasonStoreFull            = "StoreFull"
)

// The reasons of Programmed, beside ReasonPending. NoMatchingProxies comes with
// status True: there is nothing to do.
const (
	ReasonProgrammed          = "Programmed"
	ReasonServingLastGood     = "ServingLastGood"
	ReasonPartiallyProgrammed = "PartiallyProgrammed"
	ReasonProxyLacksExtension = "ProxyLacksExtension"
	ReasonNoMatchingProxies   = "NoMatchingProxies"
)
