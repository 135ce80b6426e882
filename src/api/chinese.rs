//! Every [`Code`] in Chinese: the title, and what to do. The English ones stand beside the codes.

use super::problem::Code;

/// Title and action of `code`.
pub(super) fn texts(code: Code) -> (&'static str, &'static str) {
    match code {
        // Tokens.
        Code::PinWrong => (
            "PIN 码错误",
            "请核对 PIN 码并运行 `opcert token unlock`；守护程序不会自行重试。",
        ),
        Code::PinLocked => (
            "令牌已锁定",
            "请由令牌安全员用 `opcert token pin unblock` 设置新的 PIN 码。",
        ),
        Code::PinNeeded => ("令牌需要 PIN 码", "请运行 `opcert token unlock`。"),
        Code::PinFinalTry => (
            "PIN 码只剩一次尝试机会",
            "如确定 PIN 码正确，请运行 `opcert token unlock --last-try`；再次输错将锁定令牌。",
        ),
        Code::TokenAbsent => (
            "没有该令牌",
            "请插入令牌，或从 `opcert token list` 所列中选择。",
        ),
        Code::TokenAmbiguous => (
            "符合条件的令牌不止一个",
            "请用带序列号的 URI 指定一个；`opcert token list` 会列出。",
        ),
        Code::TokenTimeout => (
            "令牌未及时响应",
            "请重试；若仍如此，请用 `opcert doctor` 检查令牌连接。",
        ),
        Code::TokenDown => (
            "无法连接令牌",
            "请稍后重试，守护程序正在重启其工作进程；若仍如此，请运行 `opcert doctor`。",
        ),
        Code::TokenError => (
            "令牌报告错误",
            "请在守护程序日志中查看 PKCS#11 函数与结果；可用 `opcert doctor` 检查令牌。",
        ),
        Code::ModuleMissing => (
            "PKCS#11 模块不存在",
            "请安装厂商的库，或更正 opcertd.toml 中 [[module]] 的 `path`。",
        ),
        Code::KeyMissing => (
            "令牌上没有该密钥",
            "请用 `opcert list` 选择已安装的证书，或用 `opcert install` 安装。",
        ),
        Code::KeyNotProven => (
            "令牌未能证明密钥不可导出",
            "请使用生成密钥时设置 CKA_SENSITIVE 并清除 CKA_EXTRACTABLE 的令牌。",
        ),
        Code::SoPinWrong => (
            "安全员 PIN 码错误",
            "请核对；每次输错都会消耗一次尝试机会，锁定后无法重置。",
        ),
        Code::SoPinLocked => (
            "安全员 PIN 码已锁定",
            "请查阅令牌制造商的说明；多数令牌只能在丢失全部内容后重置。",
        ),
        Code::SoPinFinalTry => (
            "安全员 PIN 码只剩一次尝试机会",
            "如确定正确，请加上 `--last-try`；再次输错将锁定。",
        ),
        Code::PinUnfit => (
            "令牌不接受此长度的 PIN 码",
            "请按所示长度选择 PIN 码；尚未尝试。",
        ),
        Code::TokenHoldsKeys => (
            "令牌中存有密钥",
            "请选择其他令牌，或用 `--erase-keys` 表明可以销毁其密钥；相应证书将失效。",
        ),
        Code::TokenInUse => (
            "令牌正在使用",
            "请运行 `opcert token release`，或结束正在使用它的程序，然后重试。",
        ),
        Code::SecretRequestInvalid => (
            "密钥请求被拒绝",
            "请在该电脑上再次运行 `opcert sync`；`opcert doctor` 会检查其时钟和证书。",
        ),
        Code::KeyNotAttested => (
            "令牌未证明密钥在其内部生成",
            "请使用能够证明其密钥的令牌，在 `attestation` 中指定其制造商的根证书，或取消该项要求。",
        ),
        Code::KeyUnsupported => (
            "令牌不能生成此类密钥",
            "请用 `--key-type` 选择其他密钥类型。",
        ),
        Code::SignatureInvalid => (
            "令牌返回了错误的签名",
            "未发出任何签名。再次使用前请用厂商工具检查令牌。",
        ),

        // Requests.
        Code::Busy => ("系统繁忙", "请在 `retry-after` 所示时间后重试。"),
        Code::TooManyFailures => (
            "该调用方被拒绝的次数过多",
            "请等待 `retry-after` 所示时间，然后使用已登记的证书或获准的用户。",
        ),
        Code::TooLarge => ("请求过大", "请减少内容，或由管理员在配置中提高上限。"),
        Code::TooSlow => ("请求未及时送达", "请在正常的连接上重新发送。"),
        Code::Malformed => (
            "请求格式错误",
            "请与 /v1/openapi.json 的 OpenAPI 文档对照。",
        ),
        Code::UnsupportedMediaType => (
            "不接受该媒体类型",
            "请按 OpenAPI 文档设置 `content-type`，JSON 为 application/json。",
        ),
        Code::NotFound => (
            "该地址没有内容",
            "请将路径与 /v1/openapi.json 的 OpenAPI 文档对照。",
        ),
        Code::MethodNotAllowed => ("此处不允许该方法", "请使用 `allow` 头所列的方法。"),
        Code::Internal => ("程序出错", "请在日志中按请求编号查找；若再次发生，请报告。"),

        // Doors and callers.
        Code::ClientUnknown => (
            "客户端未登记",
            "程序请用 `opcert client add` 登记；浏览器请依次运行 `opcert browser remove` 和 `opcert browser setup`，然后重新打开。",
        ),
        Code::ClientCertificateMissing => (
            "未出示客户端证书",
            "请使用 `opcert client add` 生成的证书连接；浏览器请运行 `opcert browser setup` 后重新启动。",
        ),
        Code::BrowserRefused => (
            "此入口不服务浏览器",
            "请勿发送 `origin` 和 `sec-fetch-*` 头；网页应使用浏览器入口。",
        ),
        Code::HostRefused => (
            "主机名不属于此入口",
            "请用此入口自己的端口连接 localhost、127.0.0.1 或 [::1]。",
        ),
        Code::OriginRefused => (
            "不服务该来源的网页",
            "请使用账户服务自己的网页；管理员可在 opcertd.toml 的 `[browser] origins` 中列出获准的来源。",
        ),
        Code::FetchRefused => (
            "不服务此类请求",
            "请使用 `cors` 模式的 `fetch`；不服务链接、表单、图片和 `no-cors` 请求。",
        ),
        Code::ClientKindRefused => (
            "该客户端登记为其他用途",
            "程序请用 `opcert client add` 登记，浏览器请用 `opcert browser setup` 登记。",
        ),
        Code::NotPermitted => (
            "该调用方无此权限",
            "请以 root、服务用户或其组成员的身份使用控制套接字。",
        ),
        Code::ClientExists => (
            "同名客户端已存在",
            "请换一个名称，或用 `opcert client remove` 移除旧的。",
        ),
        Code::ClientNameInvalid => (
            "客户端名称不符合要求",
            "请使用 1 至 63 个小写字母、数字和连字符，首尾不能是连字符。",
        ),
        Code::CsrInvalid => (
            "证书请求无效",
            "请重新生成：PKCS#10，由其自身密钥签名，且密钥类型受支持。",
        ),

        // Approvals.
        Code::PolicyRefused => ("策略拒绝", "如应允许，请本机管理员修改该客户端的策略。"),
        Code::LimitReached => (
            "已达限额",
            "请在 `retry-after` 所示时间后重试，或请本机管理员提高限额。",
        ),
        Code::ConsentDenied => (
            "操作人已拒绝",
            "请先询问本机的操作人。该质询将一直被拒绝；如属误操作，请获取新的质询。",
        ),
        Code::ConsentUnavailable => (
            "无法询问操作人",
            "请安装 pinentry，在 opcertd.toml 的 `[consent]` 下设置 `pinentry` 并重启守护程序；或以 `--consent none` 登记该程序。",
        ),
        Code::ConsentTimeout => ("操作人未及时答复", "请在有人使用本机时重试。"),
        Code::ChallengeMalformed => ("质询格式错误", "请向账户服务申请新的质询，并原样转交。"),
        Code::ChallengeSignature => (
            "质询的签名验证失败",
            "请向账户服务申请新的质询；此质询被改动过，或并非由其签发。",
        ),
        Code::ChallengeExpired => (
            "质询已过期",
            "请向账户服务申请新的质询；若再次发生，请检查本机时钟。",
        ),
        Code::ChallengeNotYetValid => ("质询尚未生效", "请检查本机时钟，并申请新的质询。"),
        Code::ChallengeAudience => ("质询不是给本守护程序的", "请申请受众为 `opcert` 的质询。"),
        Code::ChallengeAccount => (
            "质询属于其他商户号或操作员",
            "请为已安装证书的商户号和操作员申请质询；`opcert list` 会列出。",
        ),
        Code::ChallengeOrigin => ("质询不得由此转交", "请使用该质询所指定的网页或程序。"),
        Code::ChallengeIssuerUnknown => (
            "不认识质询的签发方",
            "请用 `opcert install` 安装该账户服务的证书。",
        ),
        Code::ChallengeKeyUnknown => (
            "质询由未知密钥签名",
            "请用 `opcert sync` 获取服务的当前密钥，然后申请新的质询。",
        ),
        Code::ChallengeUsed => ("质询已被使用", "请向账户服务申请新的质询。"),
        Code::PayeesInvalid => (
            "收款名单与质询不符",
            "请将创建操作时的名单原样随质询一并发送。",
        ),
        Code::StatementInvalid => ("操作内容不符合其类型的规则", "请更正操作，并申请新的质询。"),
        Code::CertificateMissing => ("该操作员未安装操作证书", "请用 `opcert install` 安装。"),
        Code::CertificateExpired => ("操作证书已过期", "请用 `opcert install` 安装新证书。"),
        Code::CertificateRevoked => (
            "操作证书已吊销",
            "如商户仍允许，请用 `opcert install` 安装新证书。",
        ),
        Code::AuditUnavailable => (
            "无法写入审计记录",
            "未签名任何内容。请检查审计目录的空间和权限。",
        ),
        Code::DatabaseUnavailable => (
            "账户服务的数据库没有响应",
            "除非请求此前已完成，否则未作任何更改：请在 `retry-after` 所示时间后用同一幂等键重发。如仍如此，请服务运维人员检查其日志、磁盘和数据库。",
        ),
        Code::ApprovalUnknown => (
            "没有该授权",
            "请核对 `jti`；授权只保留到其质询不能再次使用为止。",
        ),

        // Enrolment and revocation lists.
        Code::EnrolmentUnknown => (
            "没有该安装流程",
            "请用 GET /v1/enrolments 查看，或用 `opcert install` 重新开始。",
        ),
        Code::EnrolmentState => (
            "安装流程的状态不允许此操作",
            "请用 GET /v1/enrolments 查看状态；必要时取消并重新开始。",
        ),
        Code::CertificateMismatch => ("证书与安装流程不符", "请获取为此请求和凭据签发的证书。"),
        Code::TicketInvalid => (
            "凭据无效",
            "请用 `opcert install` 申请新的短信验证码和凭据。",
        ),
        Code::CrlInvalid => ("吊销列表无效", "请从账户服务获取当前列表。"),
        Code::KeysInvalid => ("密钥集无效", "请从账户服务获取当前密钥集。"),

        // WeChat Pay.
        Code::MerchantUnknown => (
            "本机未安装该商户",
            "请用 `opcert wechatpay merchant list` 查看，或用 `opcert wechatpay merchant add` 添加。",
        ),
        Code::MerchantExists => (
            "该商户已安装",
            "请用 `opcert wechatpay merchant list` 查看；`merchant renew` 为下一张证书添加密钥。",
        ),
        Code::MerchantNotReady => (
            "该商户还缺少必要的内容",
            "请用 `opcert wechatpay merchant list` 查看；证书、密钥和平台密钥在 `opcert wechatpay` 下各有命令。",
        ),
        Code::WechatpayMessage => ("没有可签名的报文", "请按实际发送的内容给出请求的各部分。"),
        Code::WechatpaySignature => (
            "不能证明报文来自平台",
            "请勿据此操作。回调应答失败：平台会再次投递，而其探测报文本应失败。",
        ),
        Code::WechatpayKeyUnknown => (
            "没有报文所指的平台密钥",
            "请用 `opcert wechatpay platform fetch` 获取平台证书，或用 `opcert wechatpay platform pin` 登记其公钥。",
        ),
        Code::WechatpayContent => (
            "加密内容无法打开",
            "请勿据此操作；请检查本机上该商户的密钥和证书是否与平台一致。",
        ),
        Code::WechatpayReplayed => (
            "同一报文已打开过",
            "请勿再次据此操作；平台真正的重发会重新签名。",
        ),
        Code::WechatpayFields => ("第 2 版报文不可接受", "请按接口说明发送单层 XML 或字段。"),
        Code::WechatpayPlatformKey => ("不接受该平台密钥", "请确认它属于该商户的平台且未被改动。"),
        Code::MerchantCertificate => (
            "不接受该 API 证书",
            "请给出商户平台为该商户密钥的请求所签发的证书。",
        ),
        Code::PrivateKeyInvalid => (
            "私钥无法导入",
            "请给出原样的 apiclient_key.pem，或最好由令牌生成密钥。",
        ),
        Code::SecretInvalid => (
            "不接受该密钥",
            "请给出在商户平台设置的 32 个字符，并加密给该商户当前的封装密钥。",
        ),

        // Account service.
        Code::SmsCodeWrong => ("短信验证码错误", "请核对后重试；一个验证码可试三次。"),
        Code::SmsCodeExpired => ("短信验证码已过期", "请重新获取验证码。"),
        Code::SmsCodeSpent => ("短信验证码已用完", "请重新获取验证码。"),
        Code::SmsTooSoon => (
            "刚刚发送过验证码",
            "请等待 `retry-after` 所示时间后再获取。",
        ),
        Code::SmsUnavailable => ("短信无法发送", "请稍后重试；服务运营方应检查短信网关。"),
        Code::LoginFailed => ("商户号、操作员或密码错误", "请核对三项后重试。"),
        Code::LoginThrottled => (
            "登录失败次数过多",
            "请等待 `retry-after` 所示时间，然后用正确的密码重试。",
        ),
        Code::SessionEnded => ("会话已结束", "请重新登录。"),
        Code::CsrfRefused => ("请求不是来自本服务的网页", "请重新打开网页后再操作。"),
        Code::InstallationHeld => ("安装正等待管理员批准", "请本商户的管理员批准后重试。"),
        Code::RenewalTooEarly => ("证书还不能更新", "请在有效期的最后三分之一内更新。"),
        Code::RequestState => (
            "申请的状态不允许此操作",
            "请用 GET /v1/requests/{id} 查看状态。",
        ),
        Code::PaperRefused => (
            "材料不被接受",
            "请上传不超过 5 MiB 的图片（JPEG 或 PNG）、PDF，或公函的 DOCX。",
        ),
        Code::TicketSpent => ("凭据已使用", "请重新获取短信验证码和凭据。"),
        Code::QuotaComputers => (
            "商户的电脑数量已达上限",
            "请在账户服务网站的操作证书页面删除不再使用的电脑的证书。",
        ),
        Code::QuotaCertificates => (
            "商户的证书数量已达上限",
            "请在账户服务网站的操作证书页面删除不再使用的证书。",
        ),
        Code::ApprovalInvalid => ("授权验证失败", "请用新的质询重新授权该操作。"),
        Code::OperationState => (
            "操作的状态不允许此步骤",
            "请用 GET /v1/operations/{id} 查看状态。",
        ),
        Code::Unauthenticated => ("凭证缺失或错误", "请发送 OpenAPI 文档所列的凭证。"),
        Code::Forbidden => ("该凭证无此权限", "请使用正确商户和角色的凭证。"),
        Code::IdempotencyConflict => ("幂等键已用于其他请求", "每个新请求请使用新的幂等键。"),

        // Start-up.
        Code::ConfigUnreadable => (
            "无法读取配置",
            "请检查路径以及服务用户能否读取该文件；`opcert init` 可生成初始配置。",
        ),
        Code::ConfigPermissions => (
            "配置对他人开放",
            "请将其所有者设为 root 或服务用户，并将权限设为 0600 或 0640。",
        ),
        Code::ConfigSyntax => ("配置不是有效的 TOML", "请更正所指的行。"),
        Code::ConfigUnknownKey => ("配置中有未知的键", "请更正或删除所指的键。"),
        Code::ConfigValue => ("配置值不允许", "请更正所指的值。"),
        Code::PolicyInvalid => (
            "策略规则有误",
            "请更正所指的行；`opcert policy check` 无需守护程序即可检查规则。",
        ),
        Code::PortInUse => ("地址已被占用", "请停止占用该地址的程序，或配置其他地址。"),
        Code::StateUnusable => (
            "状态目录无法使用",
            "请检查其是否存在、空间是否足够、是否属于服务用户。",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_says_it_in_chinese() {
        let han = |text: &str| text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
        let mut titles = HashSet::new();
        for &code in Code::ALL {
            let (title, action) = texts(code);
            assert!(han(title) && han(action), "{code}");
            assert!(!title.ends_with('。') && action.ends_with('。'), "{code}");
            assert!(titles.insert(title), "{code}: {title} twice");
            // What is to be typed or read is the same in both languages.
            let quoted = |text: &'static str| text.split('`').skip(1).step_by(2);
            let english: HashSet<&str> = quoted(code.action()).collect();
            let chinese: HashSet<&str> = quoted(action).collect();
            assert_eq!(english, chinese, "{code}");
        }
    }
}
