//! What records and notices are called: the stable kind, English, Chinese.

use super::{Language, Texts};

const TITLES: &[(&str, &str, &str)] = &[
    ("logged-in", "Logged in", "登录"),
    ("logged-out", "Logged out", "退出登录"),
    ("code-sent", "SMS code sent", "发送短信验证码"),
    ("ticket-given", "Installation permitted", "准许安装"),
    (
        "installation-held",
        "Installation waits for approval",
        "安装等待审批",
    ),
    (
        "installation-released",
        "Installation approved",
        "安装已获批准",
    ),
    ("certificate-issued", "Certificate installed", "安装证书"),
    ("certificate-revoked", "Certificate deleted", "删除证书"),
    ("operation-created", "Operation created", "创建操作"),
    ("operation-approved", "Operation approved", "授权操作"),
    ("operation-cancelled", "Operation cancelled", "取消操作"),
    (
        "operation-approved-in-part",
        "Approval added",
        "增加一次授权",
    ),
    ("challenge-made", "Challenge made", "生成质询"),
    ("secret-set", "Secret set", "设置密钥"),
    ("secret-fetched", "Secret fetched", "取回密钥"),
    ("recipient-added", "Key registered", "登记接收密钥"),
    ("recipient-active", "Key approved", "接收密钥已授权"),
    ("recipient-ended", "Key removed", "移除接收密钥"),
    ("request-made", "Request begun", "开始申请"),
    ("request-submitted", "Request submitted", "提交申请"),
    ("request-decided", "Request decided", "申请已有决定"),
    ("request-withdrawn", "Request withdrawn", "撤回申请"),
    ("request-done", "Request carried out", "申请已生效"),
    ("paper-sent-in", "Paper uploaded", "上传材料"),
    ("operator-created", "Operator added", "新增操作员"),
    ("operator-changed", "Operator changed", "修改操作员"),
    ("operator-disabled", "Operator disabled", "停用操作员"),
    ("account-created", "Account created", "创建商户"),
    ("account-changed", "Account changed", "修改商户"),
    ("account-imported", "Account imported", "导入商户"),
    ("account-exported", "Account exported", "导出商户"),
    ("approval-rule-set", "Approval rule set", "设置授权规则"),
    (
        "break-glass-revocation",
        "Certificate deleted in an emergency",
        "紧急删除证书",
    ),
    ("operation-expired", "Operation expired", "操作已过期"),
    ("form-read", "Form downloaded", "下载申请表"),
    ("paper-read", "Paper read", "查看材料"),
    ("papers-purged", "Papers destroyed", "销毁材料"),
    ("request-lapsed", "Request lapsed", "申请已失效"),
];

impl Texts {
    /// The title of a kind of record; the kind itself where the catalogue does not have it.
    pub fn event_title(self, kind: &str) -> &str {
        match TITLES.iter().find(|(known, ..)| *known == kind) {
            Some((_, english, chinese)) => match self.0 {
                Language::English => english,
                Language::Chinese => chinese,
            },
            None => kind,
        }
    }
}
