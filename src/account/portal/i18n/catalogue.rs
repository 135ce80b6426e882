//! The catalogue: name, English, Chinese.

use super::{Display, Language, Texts};

// The frame of every page.
texts! {
    brand: "Merchant Portal", "商户平台";
    skip_to_content: "Skip to content", "跳到正文";
    menu: "Menu", "菜单";
    main_navigation: "Main navigation", "主导航";
    other_language: "中文", "English";
    log_out: "Log out", "退出登录";
    log_in: "Log in", "登录";
    footer: "Approvals are signed on your hardware token. Nobody from the platform ever asks for a PIN or an SMS code.", "授权签名在您的硬件令牌上完成。平台工作人员绝不会向您索要 PIN 码或短信验证码。";
    signed_in_as(operator, account): "{operator} · {account}", "{operator} · {account}";
    home: "Home", "首页";
    operations: "Operations", "敏感操作";
    account_setting: "Account Setting", "账户设置";
    operating_certificate: "Operating Certificate", "操作证书";
    notices: "Notices", "通知";
    audit_trail: "Audit Trail", "审计记录";
    administration: "Administration", "管理";
    operators: "Operators", "操作员";
    installations: "Installations", "安装审批";
    requests: "Requests", "人工申请";
    back: "Back", "返回";
    cancel: "Cancel", "取消";
    search: "Search", "搜索";
    all: "All", "全部";
    none: "None", "无";
    never: "never", "从未";
    details: "Details", "详情";
    action: "Action", "操作";
    state: "State", "状态";
    time: "Time", "时间";
    computer: "Computer", "电脑";
    operator: "Operator", "操作员";
    account: "Account", "商户号";
    kind: "Kind", "类型";
    older: "Older", "较早";
    required_note: "Fields marked * are required.", "带 * 的字段必填。";
    required: "required", "必填";
    without_script: "This step talks to the daemon on your computer and needs JavaScript. Switch it on for this site, or use `opcert` on the command line.", "此步骤需要与本机的守护程序通信，必须启用 JavaScript。请为本站启用，或改用命令行 `opcert`。";
    nothing_here: "There is nothing here yet.", "暂无内容。";
    utc_note: "All times are UTC.", "所有时间均为 UTC。";
}

// Logging in.
texts! {
    login_title: "Log in to the Merchant Portal", "登录商户平台";
    login_lead: "Use the account, operator and password that your administrator gave you.", "请使用管理员提供的商户号、操作员和密码。";
    password: "Password", "密码";
    representative_login: "Log-in of business representatives", "客户经理登录";
    merchant_login: "Log-in of merchants", "商户登录";
    representative_lead: "For staff of the platform only.", "仅供平台工作人员使用。";
    representative_id: "Representative", "客户经理";
    session_over: "Your session is over. Log in again to go on.", "会话已结束，请重新登录后继续。";
    logged_out: "You are logged out.", "您已退出登录。";
    login_help: "Forgotten your password? An administrator of your account can have it reset.", "忘记密码？请联系本商户的管理员重置。";
}

// Home.
texts! {
    welcome(name): "Welcome, {name}", "欢迎，{name}";
    not_installed: "You have not installed an operating certificate", "您尚未安装操作证书";
    not_installed_lead: "Without one you cannot approve sensitive operations: top-ups, withdrawals, red packets, changes of passwords, numbers and secrets.", "未安装操作证书时不能进行敏感操作：充值、提现、发红包，以及修改密码、手机号和密钥。";
    install: "Install", "安装";
    install_certificate: "Install operating certificate", "安装操作证书";
    certificates_installed(count): "{count} in force", "{count} 个有效";
    your_certificates: "Your certificates", "您的证书";
    waiting_for_you: "Waiting for your approval", "等待您授权";
    waiting_count(count): "{count}", "{count} 笔";
    unread_notices: "Unread notices", "未读通知";
    role: "Role", "角色";
    role_operator: "Operator", "操作员";
    role_administrator: "Administrator", "管理员";
    role_super_administrator: "Super administrator", "超级管理员";
    role_representative: "Business representative", "客户经理";
    next_steps: "What you can do here", "您可以在此";
    do_operations: "Create and approve sensitive operations", "创建并授权敏感操作";
    do_certificates: "Install, look up and delete operating certificates", "安装、查询和删除操作证书";
}

// Operating certificates.
texts! {
    certificates_lead: "An operating certificate proves that it is you, on this computer. Its key is made on your token and never leaves it.", "操作证书用于证明是您本人在本机操作。其密钥在您的令牌中生成，永不离开令牌。";
    installed_certificates: "Installed certificates", "已安装的证书";
    quota: "Quota of the account", "商户配额";
    computers_of(used, limit): "{used} of {limit} computers", "已用 {used} / {limit} 台电脑";
    certificates_of(used, limit): "{used} of {limit} certificates", "已用 {used} / {limit} 个证书";
    quota_near: "The quota is nearly used up. Delete certificates that are no longer used before installing more.", "配额即将用完。继续安装前，请先删除不再使用的证书。";
    quota_full: "The quota is used up. Delete a certificate below before installing another; those unused for longest come first in the list of candidates.", "配额已用完。请先删除下列证书之一再安装；最久未使用的排在最前。";
    could_go: "Certificates that could go", "可以删除的证书";
    serial: "Serial number", "序列号";
    token: "Token", "令牌";
    token_serial: "Token serial number", "令牌序列号";
    issued: "Issued", "签发";
    expires: "Expires", "到期";
    last_used: "Last used", "最近使用";
    key_attested: "Key made in a device of", "密钥生成于该厂商的设备";
    device_serial(serial): "device {serial}", "设备 {serial}";
    firmware(version): "firmware {version}", "固件 {version}";
    key_not_proven: "Proof of the key", "密钥证明";
    in_force: "In force", "有效";
    expired: "Expired", "已过期";
    revoked: "Deleted", "已删除";
    replaced: "Replaced", "已更新";
    revoked_because(reason): "Reason: {reason}", "原因：{reason}";
    search_certificates: "Search by operator, computer or serial number", "按操作员、电脑或序列号搜索";
    found_none: "No certificate matches.", "没有符合条件的证书。";
    delete: "Delete", "删除";
    delete_certificate: "Delete certificate", "删除证书";
    delete_own_lead: "Deleting takes effect at once: the certificate approves nothing more. To use the portal's sensitive operations on that computer again, install a new one.", "删除立即生效：该证书不能再用于授权。如需在该电脑上继续进行敏感操作，请重新安装。";
    delete_other_lead: "This certificate belongs to another operator or computer. Deleting it needs your approval, signed with an operating certificate of yours.", "该证书属于其他操作员或电脑。删除需要您用自己的操作证书签名授权。";
    delete_break_glass: "Emergency: if a token is lost or stolen, delete its certificate right away, without an approval. This only ever takes rights away.", "紧急情况：如令牌遗失或被盗，可不经授权立即删除其证书。此操作只会减少权限。";
    reason: "Reason", "原因";
    reason_none: "None given", "未说明";
    reason_unused: "No longer used", "不再使用";
    reason_lost: "Token lost or stolen", "令牌遗失或被盗";
    reason_left: "The operator has left", "操作员已离职";
    reason_replaced: "Replaced by another", "已更换";
    sure: "I understand that this cannot be undone", "我了解此操作无法撤销";
    not_sure: "The box beside “I understand that this cannot be undone” is empty.", "未勾选“我了解此操作无法撤销”。";
    not_sure_remedy: "Nothing was deleted. Tick the box if the certificate is to go.", "未删除任何内容。如确需删除，请勾选后重新提交。";
    yours: "yours", "本人";
}

// Installing.
texts! {
    install_lead: "Four steps: find the daemon, choose a token, confirm with an SMS code, install.", "共四步：检测守护程序、选择令牌、短信验证、安装。";
    step_daemon: "The daemon on this computer", "本机守护程序";
    step_token: "Token and computer", "令牌与电脑";
    step_code: "SMS code", "短信验证码";
    step_install: "Installation", "安装";
    looking_for_daemon: "Looking for the daemon on this computer …", "正在检测本机守护程序……";
    daemon_found: "The daemon is running.", "守护程序正在运行。";
    look_again: "Look again", "重新检测";
    computer_name: "Name of this computer", "电脑名称";
    computer_name_hint: "So that you and your administrators recognise it later, e.g. “Finance office 2”.", "便于您和管理员日后辨认，例如“财务室 2 号机”。";
    choose_token: "Token", "令牌";
    choose_token_hint: "The key is made on it and cannot leave it.", "密钥在令牌中生成，无法导出。";
    no_tokens: "The daemon is configured for no token. Add one with `opcert init` or in opcertd.toml, then look again.", "守护程序未配置令牌。请用 `opcert init` 或在 opcertd.toml 中添加，然后重新检测。";
    no_usable_token: "None of these tokens can be used now. Do what is said beside one of them, then look again.", "以上令牌目前均不可用。请按令牌旁的提示处理，然后重新检测。";
    token_absent: "Not inserted", "未插入";
    token_locked_out: "Locked after wrong PINs; its security officer sets another with `opcert token pin unblock`", "多次输错 PIN 码，已锁定；请由安全员用 `opcert token pin unblock` 重设";
    token_pin_needed: "Waits for its PIN, which this computer asks you for, or give it with `opcert token unlock`", "需要 PIN 码：本机会向您询问，也可运行 `opcert token unlock` 输入";
    token_final_try: "One PIN try is left; if you are sure of it, run `opcert token unlock --last-try`", "PIN 码仅剩一次尝试机会；如确定无误，请运行 `opcert token unlock --last-try`";
    token_released: "Left to other programs; it is taken up again when it is needed", "已让给其他程序使用，需要时将重新接管";
    token_respawning: "Being started; look again in a moment", "正在启动，请稍候重新检测";
    token_unusable: "Cannot be used; `opcert doctor` says why", "无法使用，请运行 `opcert doctor` 查明原因";
    key_type: "Key type", "密钥类型";
    send_code: "Send SMS code", "发送短信验证码";
    code_goes_to(number): "The code goes to your registered number {number}.", "验证码将发送到您登记的手机号 {number}。";
    code_sent_to: "A code was sent to", "验证码已发送至";
    code_label: "Six-digit code", "六位验证码";
    code_hint: "The text names purpose, computer and account. Go on only if they are right. Tell the code to nobody.", "短信写明用途、电脑和商户号，确认无误后再继续。请勿告诉任何人。";
    confirm_install: "Install", "安装";
    progress_ticket: "Checking the code", "核对验证码";
    progress_key: "Making a key on the token and proving that it cannot leave; look for the question of opcert on this computer", "在令牌中生成密钥并证明其不可导出；请留意本机 opcert 弹窗";
    progress_certificate: "Having the certificate issued", "签发证书";
    progress_write: "Writing the certificate to the token", "将证书写入令牌";
    installed_title: "The operating certificate is installed", "操作证书安装成功";
    installed_lead: "You can approve sensitive operations on this computer now. Your administrators have been told.", "您现在可以在本机授权敏感操作。管理员已收到通知。";
    to_certificates: "To the certificates", "查看证书";
    held_title: "An administrator has to approve this installation", "此次安装需要管理员审批";
    held_lead: "The rule of your account is that installations after the first are approved. Leave this page open; it goes on by itself once an administrator has approved.", "按照本商户的规则，首次之后的安装需经审批。请保持此页面打开，管理员审批后将自动继续。";
}

// Why the daemon cannot be used, and what to do about it.
texts! {
    daemon_not_running: "The daemon is not running on this computer, or its browser door is off.", "本机守护程序未运行，或未开启浏览器接口。";
    daemon_not_running_remedy: "Start it with `systemctl start opcertd`; if it runs, set `[browser] origins` in opcertd.toml to this site. Not installed yet? Ask your administrator for the opcert package.", "请用 `systemctl start opcertd` 启动；如已运行，请在 opcertd.toml 的 `[browser] origins` 中加入本站。尚未安装时，请向管理员索取 opcert 安装包。";
    daemon_untrusted: "This browser does not trust the daemon's certificate for localhost.", "本浏览器不信任守护程序的 localhost 证书。";
    daemon_untrusted_remedy: "Run `opcert browser setup` as the user of this browser, then close every window of the browser and open it again.", "请以浏览器所属用户运行 `opcert browser setup`，然后关闭浏览器的所有窗口并重新打开。";
    daemon_denied: "The browser denied this site access to the local daemon.", "浏览器拒绝本站访问本机守护程序。";
    daemon_denied_remedy: "Open the site settings (the icon beside the address), set “Apps on device” or “Local network access” to Allow, and reload. On managed computers an administrator sets the policy.", "请点击地址栏旁的图标打开网站设置，将“设备上的应用”或“本地网络访问”设为允许并刷新。受管理的电脑由管理员设置策略。";
    daemon_no_certificate: "The browser presented no client certificate to the daemon.", "浏览器未向守护程序出示客户端证书。";
    daemon_no_certificate_remedy: "Run `opcert browser setup` as the user of this browser. If you have just done so, close every window of the browser and open it again: it remembers the old answer.", "请以浏览器所属用户运行 `opcert browser setup`。如刚刚执行过，请关闭浏览器的所有窗口并重新打开：浏览器会记住之前的结果。";
    daemon_origin: "The daemon does not accept this site.", "守护程序不接受本站。";
    daemon_origin_remedy: "Add the address of this site to `[browser] origins` in opcertd.toml and reload the daemon.", "请将本站地址加入 opcertd.toml 的 `[browser] origins`，并让守护程序重新加载配置。";
    daemon_busy: "The daemon is busy or did not answer in time.", "守护程序繁忙或未及时响应。";
    daemon_busy_remedy: "See whether a question of the browser or of opcert waits for an answer; then try again.", "请查看浏览器或 opcert 是否有待答复的询问，然后重试。";
    daemon_refused: "The daemon refused.", "守护程序拒绝了请求。";
    daemon_refused_remedy: "Its policy does not allow this. Ask the administrator of this computer.", "其策略不允许此操作，请联系本机管理员。";
    daemon_unanswered: "Nobody answered the question on this computer in time.", "本机上的询问未在规定时间内得到答复。";
    daemon_unanswered_remedy: "Nothing was signed. Start again, and answer in the window of opcert or on the token; it may be behind other windows.", "未产生任何签名。请重新开始，并在 opcert 窗口或令牌上作答；窗口可能被其他窗口遮挡。";
    daemon_stranger: "The daemon does not know this browser: its certificate was removed, has expired, or is of another program.", "守护程序不认识本浏览器：其证书已被移除、已过期，或属于其他程序。";
    daemon_stranger_remedy: "As the user of this browser run `opcert browser remove`, then `opcert browser setup`. Close every window of the browser and open it again.", "请以浏览器所属用户依次运行 `opcert browser remove` 和 `opcert browser setup`，然后关闭浏览器的所有窗口并重新打开。";
    daemon_absent: "The token is not in this computer.", "令牌未插入本机。";
    daemon_absent_remedy: "Insert it, then try again.", "请插入令牌后重试。";
    daemon_locked: "The token is locked: a wrong PIN was given too often.", "令牌已锁定：多次输错 PIN 码。";
    daemon_locked_remedy: "Have its security officer set another PIN with `opcert token pin unblock`.", "请由安全员用 `opcert token pin unblock` 重设 PIN 码。";
    daemon_last_try: "One PIN try is left on the token, which the daemon does not use.", "令牌的 PIN 码仅剩一次尝试机会，守护程序不会自行使用。";
    daemon_last_try_remedy: "If you are sure of the PIN, run `opcert token unlock --last-try` on this computer; a wrong one locks the token.", "如确定 PIN 码无误，请在本机运行 `opcert token unlock --last-try`；再输错将锁定令牌。";
    daemon_cancelled: "You declined on the screen or on the token.", "您已在屏幕或令牌上拒绝。";
    daemon_cancelled_remedy: "Nothing was signed. Start again if that was a mistake.", "未产生任何签名。如系误操作，请重新开始。";
    daemon_nobody: "The daemon has no way to ask the person at this computer.", "守护程序无法询问本机用户。";
    daemon_nobody_remedy: "Install pinentry and set `[consent] pinentry` in opcertd.toml.", "请安装 pinentry 并在 opcertd.toml 中设置 `[consent] pinentry`。";
    daemon_pin: "The token needs its PIN.", "令牌需要 PIN 码。";
    daemon_pin_remedy: "Run `opcert token unlock` on this computer, then try again.", "请在本机运行 `opcert token unlock`，然后重试。";
    daemon_no_operating: "No operating certificate of yours is installed on this computer.", "本机未安装您的操作证书。";
    daemon_no_operating_remedy: "Install one under Account Setting > Operating Certificate, or go to a computer that has one.", "请在“账户设置 > 操作证书”中安装，或使用已安装证书的电脑。";
    daemon_other: "The daemon reported a problem.", "守护程序报告了问题。";
    daemon_other_remedy: "Run `opcert doctor` on this computer; it names the cause.", "请在本机运行 `opcert doctor` 查明原因。";
    service_problem: "The service refused.", "服务拒绝了请求。";
    connection_problem: "The service could not be reached.", "无法连接服务。";
    connection_problem_remedy: "Check the network connection and try again; nothing was lost.", "请检查网络连接后重试，数据不会丢失。";
}

// Operations.
texts! {
    operations_lead: "Each sensitive operation is approved by a signature over exactly what you see here.", "每笔敏感操作都须对所显示的内容签名授权。";
    new_operation: "New operation", "新建操作";
    history: "History", "历史记录";
    create_operation: "Create operation", "创建操作";
    create_lead: "The person who creates an operation does not approve it where the rules of the account ask for four eyes.", "若商户规则要求双人复核，创建人不能自行授权。";
    amount: "Amount", "金额";
    amount_hint: "For example 1000.00", "例如 1000.00";
    currency: "Currency", "币种";
    payee: "Payee or subject", "收款方或对象";
    count: "Count", "数量";
    reference: "Reference", "单号";
    memo: "Memo", "备注";
    approver: "Approver", "授权人";
    created: "Created", "创建时间";
    created_by: "Created by", "创建人";
    operation_id: "Operation", "操作编号";
    waiting: "Waiting", "待授权";
    approved: "Approved", "已授权";
    cancelled: "Cancelled", "已取消";
    operation_expired: "Expired", "已过期";
    approvals: "Approvals", "授权";
    approvals_of(have, needed): "{have} of {needed} approvals", "已授权 {have} / {needed}";
    approve: "Approve", "授权";
    approve_lead: "Your computer shows the statement once more; sign only if both are the same.", "您的电脑将再次显示该内容；仅在两者一致时签名。";
    approving: "Waiting for the daemon. Look at the prompt on this computer or at the token.", "等待守护程序。请查看本机弹窗或令牌屏幕。";
    cancel_operation: "Cancel operation", "取消操作";
    no_operations: "No operations yet.", "暂无操作。";
    not_yours_to_approve: "Another operator is to approve this.", "应由其他操作员授权。";
    accepted_at: "Accepted", "受理时间";
    certificate: "Certificate", "证书";
    statement: "Statement", "操作内容";
}

// API security.
texts! {
    login_password: "Login password", "登录密码";
    api_security: "API Security", "API 安全";
    do_security: "Set the API secrets and see which computers have them", "设置 API 密钥，查看哪些电脑已获取";
    api_security_lead: "The two secrets of your account's interfaces. Once set, a secret is never shown again, not even to you.", "本商户接口的两个密钥。设置后任何人都无法再查看，包括您本人。";
    api_secret: "API secret", "API 密钥";
    apiv3_secret: "APIv3 secret", "APIv3 密钥";
    api_secret_lead: "Signs messages of interface version 2. It is independent of the APIv3 secret.", "用于 V2 接口的签名，与 APIv3 密钥相互独立。";
    apiv3_secret_lead: "Decrypts what the platform encrypts in interface version 3: callbacks and certificates. It is independent of the API secret.", "用于解密 V3 接口中平台加密的内容（回调与证书），与 API 密钥相互独立。";
    set_api_secret: "Set API secret", "设置 API 密钥";
    set_apiv3_secret: "Set APIv3 secret", "设置 APIv3 密钥";
    secret_is_set: "Set", "已设置";
    secret_is_not_set: "Not set", "未设置";
    set_by: "Set by", "设置人";
    set_at: "Set at", "设置时间";
    secret_version: "Version", "版本";
    old_read_until: "The one before is read until", "旧密钥可读取至";
    secret_waits(who): "A new secret, set by {who}, waits for the approval of other administrators. Until then the one before stays.", "{who} 设置的新密钥正等待其他管理员授权，在此之前沿用原密钥。";
    secret_waits_until: "Without approvals it is destroyed at", "若未获授权，将销毁于";
    withdraw_secret: "Take it back", "撤回";
    new_secret: "New secret", "新密钥";
    secret_again: "New secret, once more", "再次输入新密钥";
    secret_hint: "Exactly 32 characters: digits, upper and lower case letters", "必须为 32 个字符，由数字和大小写字母组成";
    secrets_differ: "The two fields differ.", "两次输入的密钥不一致。";
    secrets_differ_remedy: "Type the same secret into both. Code and password are asked for again as well.", "请在两处输入相同的密钥，并再次填写验证码和密码。";
    secret_once: "Set the very same secret on the payment platform. It cannot be looked at here afterwards.", "请在支付平台设置完全相同的密钥。保存后无法在此查看。";
    save_secret: "Set secret", "确认设置";
    overlap: "Read messages made with the old secret for another", "旧密钥继续用于读取的时间";
    overlap_none: "Not at all", "立即停用";
    overlap_hour: "1 hour", "1 小时";
    overlap_day: "24 hours", "24 小时";
    overlap_days: "3 days", "3 天";
    overlap_week: "7 days", "7 天";
    secret_computers: "Computers that use the secrets", "使用密钥的电脑";
    secret_computers_lead: "A computer asks for the secrets with `opcert sync`. It gets them sealed to its token, once the super administrator has let it.", "电脑通过 `opcert sync` 申请密钥。经超级管理员准许后，密钥将加密至该电脑的令牌。";
    no_secret_computers: "No computer has asked for secrets.", "暂无电脑申请密钥。";
    merchant_number: "Merchant number", "商户号（mchid）";
    last_heard_of: "Last heard of", "最近联系";
    vouched_for_by: "Vouched for by", "担保操作员";
    key_thumbprint: "Key", "密钥指纹";
    recipient_waiting: "Waits to be let in", "等待准许";
    recipient_active: "Gets secrets", "可获取密钥";
    recipient_ended: "Gets none any more", "已停止提供";
    arrival_withheld: "Not given", "未提供";
    arrival_pending: "Not fetched yet", "尚未取回";
    arrival_sealed: "On its way", "传送中";
    arrival_held: "Arrived", "已送达";
    secret_computer_lead: "This computer asks for the secrets of the account.", "该电脑申请获取本商户的密钥。";
    admit_computer: "Let it have the secrets", "准许获取密钥";
    admit_computer_lead: "Compare the key with what `opcert wechatpay secret key` prints on that computer. From now on it gets the secrets, those set later included.", "请与该电脑上 `opcert wechatpay secret key` 显示的指纹核对。准许后，该电脑将获取当前及以后设置的密钥。";
    dismiss_computer: "Give it no more secrets", "停止提供密钥";
    dismiss_computer_lead: "It keeps what it has. If the computer is lost, set new secrets as well.", "该电脑仍保有已获取的密钥。如电脑遗失，请同时设置新密钥。";
    error_secret: "The new secret is not allowed.", "新密钥不符合要求。";
    error_secret_remedy: "Give exactly 32 characters: digits, upper and lower case letters, nothing before or after.", "请输入 32 个字符，仅限数字和大小写字母，前后不能有其他字符。";
    flash_secret_set: "The secret is set. Computers get it with their next `opcert sync`.", "密钥已设置，各电脑将在下次执行 `opcert sync` 时获取。";
    flash_secret_waits: "The secret waits for the approval of other administrators.", "密钥正等待其他管理员授权。";
    flash_secret_withdrawn: "The secret was taken back. The one before stays.", "新密钥已撤回，沿用原密钥。";
    flash_computer_admitted: "The computer gets the secrets with its next `opcert sync`.", "该电脑将在下次执行 `opcert sync` 时获取密钥。";
    flash_computer_dismissed: "The computer gets no more secrets.", "已停止向该电脑提供密钥。";
}

// Lost mobile number and recovery.
texts! {
    registered_number: "Registered number", "登记的手机号";
    document: "The document", "文档";
    uploaded: "Uploaded", "已上传";
    submit: "Submit", "提交";
    requested_at: "Requested", "申请时间";
}

// Notices, audit trail.
texts! {
    notices_lead: "What administrators are told: installations, deletions, changes.", "向管理员通知的事项：安装、删除和变更。";
    no_notices: "No notices.", "暂无通知。";
    unread: "new", "新";
    mark_read: "Mark all as read", "全部标为已读";
    trail_lead: "Everything that changed in this account. Records are chained: none can be removed unseen.", "本商户的全部变更。记录前后相连，删改必被发现。";
    event: "Event", "事件";
    request_id: "Request", "请求编号";
    no_events: "No records yet.", "暂无记录。";
}

// Administration.
texts! {
    operators_lead: "People with a log-in in this account.", "本商户可登录的人员。";
    installations_lead: "Installations after the first that wait for an administrator's signature.", "等待管理员签名的后续安装。";
    no_installations: "No installation waits.", "没有待审批的安装。";
    approve_installation: "Approve the installation", "批准安装";
}

// Answers to what was done.
texts! {
    flash_certificate_deleted: "The certificate is deleted. It approves nothing more.", "证书已删除，不能再用于授权。";
    flash_operation_created: "The operation is created and waits for approval.", "操作已创建，等待授权。";
    flash_operation_cancelled: "The operation is cancelled.", "操作已取消。";
    flash_operation_approved: "The operation is approved.", "操作已授权。";
    flash_approval_taken: "Your approval is taken. The operation waits for that of somebody else.", "您的授权已受理，该操作仍需其他人授权。";
    flash_notices_read: "All notices are marked as read.", "全部通知已标为已读。";
}

// What went wrong.
texts! {
    something_wrong: "That did not work", "操作未成功";
    error_code: "Code", "代码";
    to_home: "To the home page", "返回首页";
    error_not_found: "There is no such page.", "页面不存在。";
    error_not_found_remedy: "It may have been removed, or the address is mistyped. Start again from the home page.", "页面可能已删除或地址有误，请从首页重新进入。";
    error_forbidden: "You may not do that.", "您没有此权限。";
    error_forbidden_remedy: "Ask an administrator of your account if you should be allowed.", "如需此权限，请联系本商户的管理员。";
    error_csrf: "The form was not sent from this site, or it is too old.", "表单并非来自本站，或已过期。";
    error_csrf_remedy: "Load the page again and send the form once more. Cookies must be allowed for this site.", "请重新打开页面再次提交，并允许本站使用 Cookie。";
    error_login: "Account, operator or password is wrong.", "商户号、操作员或密码错误。";
    error_login_remedy: "Check all three and try again. After several failures each further try has to wait.", "请核对三项后重试。多次失败后，再次尝试需要等待。";
    error_password: "The login password is wrong.", "登录密码错误。";
    error_password_remedy: "Type the password that you log in with, and send the form again. After several failures each further try has to wait.", "请输入您的登录密码后重新提交。多次失败后，再次尝试需要等待。";
    error_wait(seconds): "Try again in {seconds} seconds.", "请在 {seconds} 秒后重试。";
    error_busy: "Too much is going on right now.", "当前请求过多。";
    error_busy_remedy: "Wait a moment and try again.", "请稍候重试。";
    error_database: "The service cannot reach its database.", "服务暂时无法访问其数据库。";
    error_database_remedy: "Try again in a moment. If you sent a form, look first whether it was carried out all the same.", "请稍候重试。如刚提交过表单，请先查看是否已经生效。";
    error_internal: "The service failed.", "服务出错。";
    error_internal_remedy: "Nothing was changed. Try again later; if it happens again, tell the operator of the service the request number below.", "未作任何更改。请稍后重试；如再次出现，请将下方请求编号告知服务方。";
    error_malformed: "Something in the form is missing or not allowed.", "表单有缺失或不允许的内容。";
    error_malformed_remedy: "Correct the field that is named and send it again.", "请更正所指出的字段后重新提交。";
    error_too_large: "That is too large.", "内容过大。";
    error_too_large_remedy: "Send a smaller file.", "请上传较小的文件。";
    error_code_wrong: "The SMS code is wrong.", "短信验证码错误。";
    error_code_wrong_remedy: "Check the code and try again; a code allows three tries.", "请核对后重试，每个验证码最多尝试三次。";
    error_code_expired: "The SMS code has expired.", "短信验证码已过期。";
    error_code_spent: "The SMS code is used up.", "短信验证码已失效。";
    error_new_code_remedy: "Ask for a new code.", "请重新获取验证码。";
    error_too_soon: "A code was sent a moment ago.", "刚刚已发送验证码。";
    error_too_soon_remedy: "Wait a little, then ask again.", "请稍候再获取。";
    error_sms: "The SMS cannot be sent.", "短信无法发送。";
    error_quota_computers: "The account has as many computers as it may.", "电脑数量已达上限。";
    error_quota_certificates: "The account has as many certificates as it may.", "证书数量已达上限。";
    error_quota_remedy: "Delete a certificate that is no longer used, then install again.", "请删除不再使用的证书后重新安装。";
    error_ticket: "The permission to install is not valid any more.", "安装许可已失效。";
    error_ticket_remedy: "Begin again with a new SMS code.", "请重新获取验证码并重新开始。";
    error_csr: "The certificate request of the daemon was refused.", "守护程序的证书请求被拒绝。";
    error_csr_remedy: "Begin again; if it happens once more, choose another key type.", "请重新开始；如仍失败，请选择其他密钥类型。";
    error_approval: "The approval does not verify.", "授权签名验证失败。";
    error_approval_remedy: "Have the operation approved again.", "请重新授权。";
    error_operation_state: "That is no longer possible: the state has changed meanwhile.", "状态已变化，无法执行。";
    error_operation_state_remedy: "Load the page again to see where it stands.", "请刷新页面查看最新状态。";
    error_challenge_expired: "The time to sign was over.", "签名时间已过。";
    error_challenge_expired_remedy: "Approve again; two minutes are given. Check the clock of this computer if it happens again.", "请在两分钟内重新授权。如再次出现，请检查本机时钟。";
    error_certificate: "The operating certificate is expired or deleted.", "操作证书已过期或已删除。";
    error_certificate_remedy: "Install a new one under Account Setting > Operating Certificate.", "请在“账户设置 > 操作证书”中重新安装。";
    error_statement: "The operation breaks the rules of its kind.", "操作内容不符合该类型的规则。";
    error_method: "The page cannot be used that way.", "不支持此访问方式。";
}

// Emergencies.
texts! {
    break_glass: "Emergency deletion", "紧急删除";
    delete_now: "Delete at once", "立即删除";
    not_relayed: "The platform that created this operation does not let this site relay it. Approve it with the program it was made for, or with `opcert approve`.", "创建此操作的平台不允许本站转交授权。请使用相应程序或 `opcert approve` 授权。";
    created_elsewhere: "Operations that move money are created by your servers or by the platform.", "涉及资金的操作由您的服务器或平台创建。";
}

// Operators and computers.
texts! {
    you: "you", "您本人";
    computers: "Computers", "电脑";
    since: "Since", "起始时间";
    operators_note: "Operators are added, changed and closed by the operator of the service with `opcert-accountd operator`.", "新增、修改和停用操作员由服务方使用 `opcert-accountd operator` 办理。";
}

// Sessions.
texts! {
    error_session_remedy: "Log in again.", "请重新登录。";
    error_throttled: "Too many log-ins failed.", "登录失败次数过多。";
    error_throttled_remedy: "Wait, then try again with the right password.", "请稍候，再使用正确的密码重试。";
}

// Lost mobile number and recovery.
texts! {
    new_mobile_number: "New mobile number", "新手机号";
    sign_request: "Sign for it", "签名同意";
    error_request_state: "That is not possible as the request stands.", "申请的当前状态不允许此操作。";
    error_paper: "The paper is refused.", "材料未被接受。";
    error_paper_remedy: "Send a PDF, a picture or a DOCX file without macros, of at most 5 MB.", "请上传不超过 5 MB 的 PDF、图片或不含宏的 DOCX 文件。";
    mobile_number: "Mobile Number", "手机号";
    do_number: "Replace a lost mobile number", "更换遗失的手机号";
    number_lead: "SMS codes go to your registered number. If you have lost it, ask for a new one here.", "短信验证码发送到您登记的手机号。如号码遗失，可在此申请更换。";
    request_new_number: "Ask for a new number", "申请更换手机号";
    new_number_hint: "With country code, e.g. +8613800000001", "含国家代码，例如 +8613800000001";
    two_routes: "Two ways lead there: administrators of your account sign the change with their certificates, or a business representative decides on paper.", "有两种途径：由本商户管理员用证书签名，或由客户经理书面审核。";
    begin_request: "Begin", "开始申请";
    download_form: "1. Download the form, sign and stamp it", "1. 下载表格，签字并盖章";
    form_pdf: "Form as PDF", "PDF 表格";
    form_docx: "Form as DOCX", "DOCX 表格";
    upload_papers: "2. Upload the papers", "2. 上传材料";
    photocopy: "Photocopy of the signed and stamped form", "签字盖章表格的扫描件";
    photocopy_hint: "PDF, JPEG or PNG, at most 5 MB", "PDF、JPEG 或 PNG，不超过 5 MB";
    document_hint: "DOCX or PDF, at most 5 MB", "DOCX 或 PDF，不超过 5 MB";
    upload: "Upload", "上传";
    submit_request: "3. Submit for decision", "3. 提交审核";
    withdraw: "Withdraw the request", "撤回申请";
    request_open: "Papers missing", "待上传材料";
    request_submitted: "Being looked at", "审核中";
    request_granted: "Granted", "已通过";
    request_refused: "Refused", "已拒绝";
    request_withdrawn: "Withdrawn", "已撤回";
    request_done: "Done", "已完成";
    effective_at(time): "Takes effect at {time}. Until then it can be stopped; the old number has been told.", "将于 {time} 生效。在此之前可以终止；已通知旧号码。";
    mobile_change: "Change of mobile number", "更换手机号";
    computer_recovery: "Recovery of the only computer", "恢复唯一的电脑";
    request_recovery: "Ask for recovery", "申请恢复";
    recovery_lead: "If the only computer with an administrator's certificate is lost, a business representative can allow a new installation, after a delay and with notice to the registered number.", "若唯一持有管理员证书的电脑遗失，客户经理可在通知登记手机号并经过等待期后，允许重新安装。";
    grant: "Grant", "批准";
    refuse: "Refuse", "拒绝";
    stop_request: "Stop it", "终止";
    decide: "Decision", "审核决定";
    decide_hint: "The applicant reads the reason.", "申请人会看到此原因。";
    papers: "Papers", "材料";
    requests_lead: "Requests that wait for a decision of a business representative.", "等待客户经理审核的申请。";
    no_requests: "No request waits.", "没有待审核的申请。";
    applicant: "Applicant", "申请人";
    old_number: "Old number", "原手机号";
    flash_request_begun: "The request is begun. Now download the form.", "申请已开始，请下载表格。";
    flash_uploaded: "The paper is uploaded.", "材料已上传。";
    flash_request_submitted: "The request is submitted.", "申请已提交。";
    flash_request_withdrawn: "The request is withdrawn.", "申请已撤回。";
    flash_request_decided: "The decision is recorded.", "决定已记录。";
}
