//! PKCS#11 return values: their names, and what to do about each.
//!
//! What was called, and whether it is called again, never lives here.

use cryptoki::error::{Error, RvError};

use crate::device::frames::{Class, Failure};

/// What to do about a return value. Whatever is not named here, vendor codes included, means that
/// library or token is unwell.
pub fn class(code: &RvError) -> Class {
    match code {
        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::DataInvalid
        | RvError::DataLenRange
        | RvError::KeyTypeInconsistent
        | RvError::KeyFunctionNotPermitted
        | RvError::KeySizeRange
        | RvError::CurveNotSupported
        | RvError::DomainParamsInvalid
        | RvError::AttributeReadOnly
        | RvError::AttributeSensitive
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid
        | RvError::ActionProhibited
        | RvError::ArgumentsBad
        | RvError::TemplateIncomplete
        | RvError::TemplateInconsistent
        | RvError::TokenWriteProtected
        | RvError::FunctionNotSupported
        | RvError::FunctionRejected
        | RvError::DeviceMemory => Class::Caller,
        RvError::UserNotLoggedIn => Class::Login,
        RvError::ObjectHandleInvalid | RvError::KeyHandleInvalid => Class::Handle,
        RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::OperationActive
        | RvError::OperationNotInitialized => Class::Session,
        RvError::SessionCount | RvError::HostMemory => Class::Shrink,
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired
        | RvError::PinLocked
        | RvError::UserPinNotInitialized => Class::Pin,
        RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid => Class::Gone,
        _ => Class::Respawn,
    }
}

/// The specification's name of a return value: `CKR_PIN_INCORRECT`.
pub fn name(code: &RvError) -> String {
    match code {
        RvError::VendorDefined(number) => {
            format!("CKR_VENDOR_DEFINED+0x{:x}", number & 0x7fff_ffff)
        }
        RvError::UnknownErrorCode(number) => format!("CKR 0x{number:x}"),
        known => {
            let mut text = String::from("CKR");
            for letter in format!("{known:?}").chars() {
                if letter.is_ascii_uppercase() {
                    text.push('_');
                }
                text.push(letter.to_ascii_uppercase());
            }
            text
        }
    }
}

/// What a caller is told about an error of cryptoki.
pub fn failure(error: &Error) -> Failure {
    match error {
        Error::Pkcs11(code, function) => Failure::Pkcs11 {
            function: format!("C_{function:?}"),
            code: name(code),
            class: class(code),
        },
        Error::NullFunctionPointer | Error::NotSupported => Failure::Unsupported {
            what: "a function of PKCS#11 that is needed".into(),
        },
        // Values that the module returned and that cannot be read.
        other => Failure::Pkcs11 {
            function: "the module".into(),
            code: format!("an unreadable value ({other})"),
            class: Class::Respawn,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_specification() {
        assert_eq!(name(&RvError::PinIncorrect), "CKR_PIN_INCORRECT");
        assert_eq!(name(&RvError::UserNotLoggedIn), "CKR_USER_NOT_LOGGED_IN");
        assert_eq!(
            name(&RvError::VendorDefined(0x8000_0001)),
            "CKR_VENDOR_DEFINED+0x1"
        );
    }

    #[test]
    fn what_is_not_known_means_an_unwell_module() {
        assert_eq!(class(&RvError::VendorDefined(0x8000_0001)), Class::Respawn);
        assert_eq!(class(&RvError::GeneralError), Class::Respawn);
        assert_eq!(class(&RvError::DataLenRange), Class::Caller);
        assert_eq!(class(&RvError::TokenNotPresent), Class::Gone);
    }
}
