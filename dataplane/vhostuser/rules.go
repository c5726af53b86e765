package vhostuser

// rule is what must hold before a message reaches its handler. The zero rule: unsupported.
type rule struct {
	handle   func(*session, *message) (reply []byte, err error)
	min, max int    // bytes of payload
	fds      int    // at most so many descriptors
	needs    uint64 // protocol features that must have been negotiated
	answers  bool   // has a reply of its own, so a failure cannot be acknowledged
}

// rules has one line per request served. The getters that precede negotiation in one front-end or another need nothing.
// Missing, and refused: IOTLB, postcopy, device state, in-band notifications, crypto, GPU.
var rules = [...]rule{
	GetFeatures:         {handle: (*session).getFeatures, answers: true},
	SetFeatures:         {handle: (*session).setFeatures, min: 8, max: 8},
	SetOwner:            {handle: (*session).setOwner},
	ResetOwner:          {handle: (*session).resetOwner},
	GetProtocolFeatures: {handle: (*session).getProtocolFeatures, answers: true},
	SetProtocolFeatures: {handle: (*session).setProtocolFeatures, min: 8, max: 8},
	GetQueueNum:         {handle: (*session).getQueueNum, answers: true},

	SetMemTable:    {handle: (*session).setMemTable, min: 8, max: 8 + maxTable*regionSize, fds: maxTable},
	GetMaxMemSlots: {handle: (*session).getMaxMemSlots, needs: ProtocolMemSlots, answers: true},
	AddMemReg:      {handle: (*session).addMemReg, min: 8 + regionSize, max: 8 + regionSize, fds: 1, needs: ProtocolMemSlots},
	RemMemReg:      {handle: (*session).remMemReg, min: 8 + regionSize, max: 8 + regionSize, fds: 1, needs: ProtocolMemSlots},

	SetVringNum:    {handle: (*session).setVringNum, min: 8, max: 8},
	SetVringAddr:   {handle: (*session).setVringAddr, min: 40, max: 40},
	SetVringBase:   {handle: (*session).setVringBase, min: 8, max: 8},
	GetVringBase:   {handle: (*session).getVringBase, min: 8, max: 8, answers: true},
	SetVringKick:   {handle: (*session).setVringKick, min: 8, max: 8, fds: 1},
	SetVringCall:   {handle: (*session).setVringCall, min: 8, max: 8, fds: 1},
	SetVringErr:    {handle: (*session).setVringErr, min: 8, max: 8, fds: 1},
	SetVringEnable: {handle: (*session).setVringEnable, min: 8, max: 8},

	SetLogBase:    {handle: (*session).setLogBase, min: 16, max: 16, fds: 1, needs: ProtocolLogShmfd, answers: true},
	SetLogFD:      {handle: (*session).setLogFD, max: 8, fds: 1, needs: ProtocolLogShmfd},
	GetInflightFD: {handle: (*session).getInflightFD, min: inflightMessage, max: inflightMessage + 4, needs: ProtocolInflight, answers: true},
	SetInflightFD: {handle: (*session).setInflightFD, min: inflightMessage, max: inflightMessage + 4, fds: 1, needs: ProtocolInflight},
	SendRARP:      {handle: (*session).sendRARP, min: 8, max: 8, needs: ProtocolRARP},

	SetBackendReqFD: {handle: (*session).setBackendReqFD, max: 8, fds: 1, needs: ProtocolBackendReq},

	NetSetMTU:   {handle: (*session).netSetMTU, min: 8, max: 8, needs: ProtocolNetMTU},
	GetConfig:   {handle: (*session).getConfig, min: configHead, max: configHead + maxConfig, needs: ProtocolConfig, answers: true},
	SetConfig:   {handle: (*session).setConfig, min: configHead, max: configHead + maxConfig, needs: ProtocolConfig},
	ResetDevice: {handle: (*session).resetDevice, needs: ProtocolResetDevice},
	SetStatus:   {handle: (*session).setStatus, min: 8, max: 8, needs: ProtocolStatus},
	GetStatus:   {handle: (*session).getStatus, needs: ProtocolStatus, answers: true},
}
